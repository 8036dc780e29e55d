"""Finding the chunk that fits, held against memory that is really refused.

The limit is one on the address space of a process of its own, so that nothing here depends on the machine's memory.
"""

import gc
import json
import os
import subprocess
import sys
from errno import EACCES, ENOMEM

import pytest
import torch

from cliplet.errors import TrainingError
from cliplet.training import memory
from cliplet.training.memory import available, divisors, largest_chunk, out_of_memory, what_would_fit

CPU = torch.device("cpu")
MB = 2**20
LINUX = sys.platform == "linux"


@pytest.fixture(autouse=True)
def little_to_collect():
    """Memory is tidied before each attempt, which takes the longer the more objects there are."""
    gc.freeze()
    yield
    gc.unfreeze()


LIMITED = """
import json, resource, runpy, sys
from types import SimpleNamespace
import torch
from torch import nn
from cliplet.errors import TrainingError

memory = SimpleNamespace(**runpy.run_path(sys.argv[1]))  # alone, for the package around it takes seconds to import
available, divisors, largest_chunk = memory.available, memory.divisors, memory.largest_chunk
out_of_memory, what_would_fit = memory.out_of_memory, memory.what_would_fit

CPU, MB = torch.device("cpu"), 2**20
tried, said, found = [], [], {}

def limit(room):
    resource.setrlimit(resource.RLIMIT_AS, (memory._kilobytes(memory.STATUS, "VmSize") + room * MB, -1))

def megabytes(chunk):  # 20 MB and one more for each picture, written to
    tried.append(chunk)
    return torch.ones((20 + chunk) * MB, dtype=torch.uint8)

limit(400)
found["available"] = available(CPU) / MB
found["by hand"] = [largest_chunk(megabytes, divisors(720), CPU, said.append), tried, said]
tried = []
found["reserve"] = [largest_chunk(megabytes, divisors(720), CPU, reserve=100 * MB), tried]
tried = []
try:
    largest_chunk(megabytes, [500, 1000], CPU)
except TrainingError as error:
    found["nothing"] = [error.message, error.hint, tried]

# A model whose activations are some MB a picture: 64 rows of 16 kB, several times.
torch.manual_seed(0)
model = nn.Sequential(*(nn.Sequential(nn.Linear(64, 4096), nn.Tanh(), nn.Linear(4096, 64)) for _ in range(2)))
pictures = torch.randn(48, 64, 64)

def step(chunk):
    try:
        for part in pictures.split(chunk):
            loss = model(part).square().mean() * len(part) / len(pictures)
            loss.backward()
        return torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item()
    finally:
        model.zero_grad(set_to_none=True)

def attempt(chunk):
    tried.append(chunk)
    try:
        model(pictures[:chunk]).square().mean().backward()
    finally:
        model.zero_grad(set_to_none=True)

resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
found["unlimited"] = step(48)
limit(130)
tried = []
try:
    step(48)
except Exception as failed:
    found["recognised"] = out_of_memory(failed)
    answer = what_would_fit(failed, attempt, divisors(48), CPU, batch=48, chunk=48)
    found["answer"] = [answer.message, answer.hint]
found["tried"] = tried
found["chunked"] = step(int(answer.hint.split()[2]))
try:
    step(48)
except Exception as failed:
    found["still refused"] = out_of_memory(failed)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def limited():
    """What happened in a process whose address space is limited."""
    if not LINUX:
        pytest.skip("limits of the address space are tried on Linux")
    # malloc keeps what is freed in pieces below this size, and the limit counts it.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LIMITED, memory.__file__]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout)


def test_the_limit_of_the_address_space_counts_as_memory_that_is_not_there(limited):
    assert 390 <= limited["available"] <= 400


def test_the_largest_chunk_is_found_in_a_few_attempts_none_of_them_too_large(limited):
    """0.85 of 400 MB are 340: 240 pictures take 260 MB, the next divisor's 360 would take 380."""
    chunk, tried, said = limited["by hand"]
    assert chunk == 240
    assert tried[-1] == 240 and max(tried) == 240
    assert len(tried) <= 8
    assert said == ["240 pictures at a time take 0.3 GB of 0.4 GB there are; --train.chunk-size 240 spares the search"]


def test_what_is_reserved_is_kept_free(limited):
    """Of the 340 MB 100 are kept: 180 pictures take 200 MB."""
    chunk, tried = limited["reserve"]
    assert chunk == 180 and max(tried) == 180


def test_where_nothing_fits_what_would_help_is_said(limited):
    message, hint, tried = limited["nothing"]
    assert tried == [500]
    assert message == "out of memory: not even 500 pictures at a time would fit into the 0.4 GB that are free"
    assert "--model.preprocess.image-size" in hint and "--data.captions-per-image" in hint


def test_a_step_that_runs_out_of_memory_is_answered_with_a_chunk_that_then_runs(limited):
    assert limited["recognised"]
    message, hint = limited["answer"]
    assert message.startswith("out of memory: a batch of 48 pictures needs more than the 0.")
    chunk = int(hint.removeprefix("Add --train.chunk-size ").split()[0])
    assert 48 not in limited["tried"] and chunk in (12, 16, 24)
    assert hint.endswith("it was tried just now, and fits.")
    assert limited["tried"][-1] == chunk
    assert limited["chunked"] == pytest.approx(limited["unlimited"], rel=1e-4)
    assert limited["still refused"]


def refused(work):
    """The error of work that fails."""
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        work()
    return caught.value


def test_real_refusals_are_recognised():
    assert out_of_memory(refused(lambda: torch.empty(10**15)))
    assert out_of_memory(refused(lambda: bytearray(1 << 62)))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.79 GiB"
        ),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("MPS backend out of memory (MPS allocated: 17.87 GB, other allocations: 288 KB)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:80] . DefaultCPUAllocator: not enough memory: you tried to"),
        OSError(ENOMEM, "Cannot allocate memory"),
    ],
)
def test_refusals_of_other_devices_are_recognised_by_their_words(error):
    assert out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        refused(lambda: torch.ones(2, 3) @ torch.ones(2, 3)),
        ValueError("out of memory"),
        OSError(EACCES, "Permission denied"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        KeyboardInterrupt(),
    ],
)
def test_other_errors_are_not(error):
    assert not out_of_memory(error)


def cliff(at):
    """An attempt whose peak grows with the chunk, and that is refused, for real, from some size on; what it saw."""
    tried = []

    def attempt(chunk):
        tried.append(chunk)
        torch.ones(chunk * MB // 8, dtype=torch.uint8)
        if chunk >= at:
            torch.empty(10**15)

    return attempt, tried


@pytest.mark.parametrize(("at", "largest"), [(2, 1), (33, 32), (100, 64), (512, 256), (1000, 512)])
def test_a_refusal_that_no_prediction_foresaw_is_stepped_back_from(at, largest):
    attempt, tried = cliff(at)
    assert largest_chunk(attempt, divisors(512), CPU) == largest
    assert len(tried) <= 11
    assert largest in tried and sorted(set(tried)) == sorted(set(tried) & set(divisors(512)))


def test_the_smallest_refused_is_an_error():
    attempt, tried = cliff(1)
    with pytest.raises(TrainingError, match="not even 1 picture at a time would fit") as caught:
        largest_chunk(attempt, divisors(64), CPU)
    assert tried == [1] and "bf16" in caught.value.hint
    error = what_would_fit(refused(lambda: attempt(64)), attempt, divisors(64), CPU, batch=64, chunk=64)
    assert "No smaller chunk fits either" in error.hint


def test_a_chunk_that_was_too_large_is_answered_with_a_smaller_one():
    attempt, tried = cliff(16)
    error = what_would_fit(refused(lambda: attempt(32)), attempt, divisors(64), CPU, batch=64, chunk=32)
    assert "a batch of 64 pictures in chunks of 32 needs more than" in error.message
    assert error.hint.startswith("Add --train.chunk-size 8 instead;")
    assert max(tried[1:]) < 32
    last = what_would_fit(refused(lambda: attempt(16)), attempt, [1], CPU, batch=16, chunk=1)
    assert "No smaller chunk fits either" in last.hint


def test_other_errors_of_an_attempt_pass():
    def attempt(chunk):
        raise ValueError("a fault in the model")

    with pytest.raises(ValueError, match="a fault in the model"):
        largest_chunk(attempt, [1, 2], CPU)


def test_what_a_failed_step_held_is_let_go():
    """While an error is handled its frames live on, and with them the tensors of half a step."""
    deaths = []

    class Held:
        def __del__(self):
            deaths.append(True)

    def step():
        held = Held()
        torch.empty(10**15)
        return held

    def attempt(chunk):
        assert deaths

    try:
        step()
    except RuntimeError as error:
        assert not deaths
        answer = what_would_fit(error, attempt, [1, 2, 4], CPU, batch=4, chunk=4)
    assert "--train.chunk-size 2" in answer.hint


@pytest.mark.skipif(not LINUX, reason="peaks are the system's on Linux")
@pytest.mark.parametrize("reset", [True, False])
def test_a_peak_is_what_was_written_to_at_most(reset, monkeypatch):
    """By the system's own peak, and looked at every few milliseconds where that cannot be reset."""
    if not reset:
        monkeypatch.setattr(memory, "_reset_peak", lambda: False)

    def work():
        for size in (40, 90, 60):  # none so small that malloc keeps it
            torch.ones(size * MB, dtype=torch.uint8)[::4096].sum()

    assert memory.growth(work, CPU) / MB == pytest.approx(90, abs=10)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    gpu = torch.device("cuda")
    assert memory.growth(lambda: torch.ones(100 * MB, dtype=torch.uint8, device=gpu), gpu) / MB >= 100
    free = available(gpu)
    assert free is not None

    def attempt(chunk):
        torch.ones(chunk * 2**30, dtype=torch.uint8, device=gpu).sum()

    candidates = range(1, 2 * free // 2**30 + 2)
    largest = largest_chunk(attempt, candidates, gpu)
    assert 0.7 * free <= largest * 2**30 <= 0.85 * free
    with pytest.raises(torch.OutOfMemoryError) as caught:
        attempt(candidates[-1])
    assert out_of_memory(caught.value)


def group(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(str(text))


def test_control_groups_of_the_second_version(tmp_path):
    """The least of the process's group and those above it; pages of files are given up on demand."""
    (tmp_path / "cgroup").write_text("0::/pod/box\n")
    group(tmp_path / "fs/pod/box", {"memory.max": "max\n", "memory.current": 700, "memory.stat": "anon 1\n"})
    stat = "anon 500\nactive_file 60\ninactive_file 40\nshmem 7\n"
    group(tmp_path / "fs/pod", {"memory.max": "1000\n", "memory.current": "800\n", "memory.stat": stat})
    group(tmp_path / "fs", {"memory.stat": stat})
    assert list(memory._cgroup_rooms(tmp_path / "cgroup", tmp_path / "fs")) == [1000 - 800 + 100]


def test_control_groups_of_the_first_version_seen_from_a_container(tmp_path):
    """The path is the host's; what is mounted is the container's own group."""
    (tmp_path / "cgroup").write_text("9:cpu,cpuacct:/docker/1f\n4:memory:/docker/1f\n0::/\n")
    stat = "cache 1\nactive_file 1\ntotal_active_file 30\ntotal_inactive_file 20\n"
    files = {"memory.limit_in_bytes": 900, "memory.usage_in_bytes": 600, "memory.stat": stat}
    group(tmp_path / "fs/memory", files)
    assert list(memory._cgroup_rooms(tmp_path / "cgroup", tmp_path / "fs")) == [900 - 600 + 50]


def test_no_control_groups(tmp_path):
    assert list(memory._cgroup_rooms(tmp_path / "cgroup", tmp_path)) == []


def test_no_more_is_available_than_there_is():
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < available(CPU) <= whole
    assert available(torch.device("meta")) is None


def test_divisors():
    assert divisors(12) == [1, 2, 3, 4, 6, 12]
    assert divisors(1) == [1]
    assert divisors(7) == [1, 7]
