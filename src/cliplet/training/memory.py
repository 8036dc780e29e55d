"""How many pictures fit into memory at once: found by trying, and named when a run has run out of it.

What a step takes grows with the pictures that are embedded at once, its chunk. So the peaks of small chunks, measured,
say which larger ones will fit, and only those are tried. That matters on the CPU, where a process that asks for too
much is more often killed by the system than refused.
"""

from __future__ import annotations

import ctypes
import gc
import math
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from errno import ENOMEM
from pathlib import Path, PurePosixPath

import torch

from cliplet.errors import TrainingError
from cliplet.training.distributed import place_of_rank

SHARE = 0.85  # of what is available may be planned with; the rest is for what differs from step to step
JUMP = 8  # times the largest chunk measured that a prediction is trusted for
SMALL = 3  # so many of the smallest chunks are measured before a prediction is trusted for a jump
SAMPLED_EVERY = 0.002  # seconds
GB = 1e9
STATUS, MEMINFO = Path("/proc/self/status"), Path("/proc/meminfo")  # Linux
REFUSALS = (
    "out of memory",  # of CUDA, ROCm, MPS and XPU
    "can't allocate memory",  # of torch on the CPU, and as "not enough memory" on Windows
    "not enough memory",
    "cannot allocate memory",  # of the system
    "_status_alloc_failed",  # of cuBLAS, cuDNN, cuSOLVER
    "std::bad_alloc",
    "could not execute a primitive",  # of oneDNN, which says no more
    "could not create a memory",
)
WHAT_HELPS = (
    "Any of these needs less memory: fewer pixels (--model.preprocess.image-size), a smaller tower, "
    "--train.precision bf16, fewer captions a picture (--data.captions-per-image), a shorter context "
    "(--model.text.context-length), fewer blocks that train; or free what other programs hold."
)

Attempt = Callable[[int], object]


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was refused, on whatever device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == ENOMEM
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(refusal in text for refusal in REFUSALS)


def available(device: torch.device) -> int | None:
    """Bytes that this process can still take on a device; None where nobody says.

    CUDA and MPS: what is free, and what torch holds unused. CPU: the least of the system's free memory, what control
    groups leave (a container's limit) and the limit of the address space; where the system tells none of them, all
    the memory that it has.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    if device.type != "cpu":
        return None
    # What ranks on this machine have in common is shared out among them.
    limits = [_system_room(), *_cgroup_rooms(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")), _address_room()]
    known = [limit for limit in limits if limit is not None]
    return max(0, min(known)) // place_of_rank()[1] if known else None


def divisors(number: int) -> list[int]:
    """All of them, ascending: the chunks that share out a batch evenly."""
    return [part for part in range(1, number + 1) if number % part == 0]


def largest_chunk(
    attempt: Attempt,
    candidates: Sequence[int],
    device: torch.device,
    say: Callable[[str], None] = lambda message: None,
    *,
    reserve: int = 0,
) -> int:
    """The largest of the candidates that fits, by an attempt that it passed.

    `attempt(chunk)` does forward and backward of so many pictures with the longest captions to come, and frees all
    that it made; `candidates` ascend. `reserve`: bytes that a step needs beyond an attempt, such as the optimiser's
    state, while there is none, and the logits of the whole batch. Peaks are taken for a line, a + b · chunk, through
    the last two measured, and no chunk is tried for which it lies above the budget. Raises TrainingError, with what
    would help, where not even the smallest fits; errors that are not about memory pass.
    """
    largest, peak, free = _search(attempt, candidates, device, reserve)
    room = f" of {_gb(free)} there are" if free is not None else ""
    say(f"{_pictures(largest)} at a time take {_gb(peak)}{room}; --train.chunk-size {largest} spares the search")
    return largest


def what_would_fit(
    error: BaseException,
    attempt: Attempt,
    candidates: Sequence[int],
    device: torch.device,
    *,
    batch: int,
    chunk: int,
    reserve: int = 0,
) -> TrainingError:
    """What to tell the user when a step on chunks of `chunk` pictures, of a batch of `batch`, ran out of memory.

    `error` is what was raised; it holds the failed step's tensors, which are freed here. The rest is as for
    `largest_chunk`; of the candidates those below `chunk` are tried. Gives the error to raise (`from None`), whose
    hint names the largest chunk that fits or, where none does, what else would help.
    """
    _forget(error)
    _tidy(device)
    free = available(device)
    room = f"the {_gb(free)} that were left for it" if free is not None else "there is"
    chunks = f" in chunks of {chunk}" if chunk < batch else ""
    message = f"out of memory: a batch of {_pictures(batch)}{chunks} needs more than {room}"
    try:
        largest, _, _ = _search(attempt, [one for one in candidates if one < chunk], device, reserve)
    except TrainingError:
        return TrainingError(message, f"No smaller chunk fits either. {WHAT_HELPS}")
    instead = "instead" if chunk < batch else "(gradients as of the whole batch, a third slower)"
    return TrainingError(message, f"Add --train.chunk-size {largest} {instead}; it was tried just now, and fits.")


def _search(
    attempt: Attempt, candidates: Sequence[int], device: torch.device, reserve: int
) -> tuple[int, int, int | None]:
    """The largest chunk that fits, its peak in bytes, and the bytes that were available."""
    # The first attempt also loads code and fills caches that stay; none of that is a chunk's own.
    left = list(candidates) if candidates and _tried(attempt, candidates[0], device) is not None else []
    peaks: dict[int, int] = {}  # of the chunks that ran, in this order
    best, surprised, free = 0, False, available(device)
    while left:
        room = available(device)  # anew each time, for other programs and malloc's holes change it
        budget = math.inf if room is None else SHARE * room - reserve
        expected = [chunk for chunk in left if _predicted(chunk, peaks) <= budget]
        if not expected:
            break
        if surprised:
            chunk = expected[len(expected) // 2]
        elif len(peaks) < SMALL:
            chunk = expected[0]
        else:
            chunk = max((one for one in expected if one <= JUMP * best), default=expected[0])
        peak = _tried(attempt, chunk, device)
        if peak is not None:
            peaks[chunk] = peak
        if peak is not None and peak <= budget:
            best, left = chunk, [one for one in left if one > chunk]
        else:
            surprised, left = surprised or peak is None, [one for one in left if one < chunk]
    _tidy(device)
    if best:
        return best, peaks[best], free
    smallest = f"not even {_pictures(candidates[0])} at a time" if candidates else "no part of the batch"
    room_there = f"the {_gb(free)} that are free" if free is not None else "memory"
    kept = f", of which the optimiser and the loss need {_gb(reserve)}" if reserve else ""
    raise TrainingError(f"out of memory: {smallest} would fit into {room_there}{kept}", WHAT_HELPS)


def _predicted(chunk: int, peaks: dict[int, int]) -> float:
    """Bytes that a chunk is expected to take, by the last ones measured."""
    if not peaks:
        return 0.0
    last, before = list(peaks)[-1], list(peaks)[-2:][0]
    slope = (peaks[last] - peaks[before]) / (last - before) if last != before else 0.0
    if slope > 0:
        return peaks[last] + slope * (chunk - last)
    return peaks[last] * chunk / last  # for larger chunks more than any line with a constant part says


def _tried(attempt: Attempt, chunk: int, device: torch.device) -> int | None:
    """Bytes by which an attempt's peak lay above what was in use before it; None where memory was refused."""
    try:
        return growth(lambda: attempt(chunk), device)
    except Exception as error:
        if not out_of_memory(error):
            raise
        _forget(error)
        return None


def growth(work: Callable[[], object], device: torch.device) -> int:
    """Bytes by which the use of memory rose at most while `work` ran."""
    _tidy(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
        work()
        torch.cuda.synchronize(device)
        return max(
            torch.cuda.max_memory_allocated(device) - allocated, torch.cuda.max_memory_reserved(device) - reserved
        )
    before = _in_use(device)
    if device.type == "cpu" and _reset_peak():
        work()
        return max(0, _status("VmHWM") - before)
    with _Sampled(device) as sampled:
        work()
    return sampled.peak - before


class _Sampled:
    """The most memory seen in use, looked at every few milliseconds: for where the system keeps no peak to reset."""

    def __init__(self, device: torch.device):
        self._device = device
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.peak = _in_use(device)

    def __enter__(self) -> _Sampled:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()
        self.peak = max(self.peak, _in_use(self._device))

    def _look(self) -> None:
        while not self._done.wait(SAMPLED_EVERY):
            self.peak = max(self.peak, _in_use(self._device))


def _in_use(device: torch.device) -> int:
    """Bytes in use now; where only the process's own peak is known, that."""
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    if STATUS.exists():
        return _status("VmRSS")
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _reset_peak() -> bool:
    """Sets VmHWM to what is in use now (proc(5), clear_refs); whether that is possible here."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status(name: str) -> int:
    """Bytes of this process under a name of /proc/self/status."""
    return _kilobytes(STATUS, name)


def _kilobytes(file: Path, name: str) -> int:
    """Bytes of a line such as `VmRSS:   1234 kB`."""
    line = next(line for line in file.read_text().splitlines() if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])


def _system_room() -> int | None:
    """Bytes that the system could give without swapping, or all that it has where it does not say."""
    if MEMINFO.exists():
        return _kilobytes(MEMINFO, "MemAvailable")
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _cgroup_rooms(groups: Path, mount: Path) -> Iterator[int]:
    """Bytes that each limit on this process's control groups leaves, those above them included.

    `groups` lists them by hierarchy, as in cgroups(7). In a container the path may be the host's, of which only the
    top is mounted; folders that are not there are passed over. Pages of files count as use, but are given up on demand.
    """
    for line in groups.read_text().splitlines() if groups.exists() else []:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, limit, usage, prefix = mount, "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):
            top, limit, usage, prefix = mount / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
        else:
            continue
        inner = PurePosixPath(path.lstrip("/"))
        for folder in (top / part for part in (inner, *inner.parents)):
            with suppress(OSError, ValueError):  # no such folder; no file in the topmost; "max"
                most, used = (int((folder / name).read_text()) for name in (limit, usage))
                pages = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                files = sum(int(pages[f"{prefix}{kind}_file"]) for kind in ("active", "inactive"))
                yield most - used + files


def _address_room() -> int | None:
    """Bytes that the limit of the address space leaves (ulimit -v)."""
    if not STATUS.exists():
        return None
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if limit == resource.RLIM_INFINITY else limit - _status("VmSize")


def _forget(error: BaseException | None) -> None:
    """Lets go of what the frames that an error went through hold: tensors of half a step."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _tidy(device: torch.device) -> None:
    """Gives back what is free: a chunk's growth must not hide in what the one before it left."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    elif sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; musl has none
        if trim:
            trim(0)


def _gb(size: float) -> str:
    return f"{size / GB:.1f} GB"


def _pictures(count: int) -> str:
    return f"{count} picture{'' if count == 1 else 's'}"
