"""Exported graphs in use: what was changed is refused, what computes wrongly is not trusted, and no torch is needed."""

import json
import shutil
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest

import cliplet
from cliplet.errors import ConfigError, ImageError, ModelError
from cliplet.files import cache_folder
from cliplet.models import DualEncoder
from cliplet.runtime import choice
from cliplet.runtime.choice import Candidate
from cliplet.runtime.cores import cores
from cliplet.runtime.exported import configuration_hash
from cliplet.runtime.graphs import OPENERS, OnnxRuntimeGraph
from cliplet.runtime.state import State

TEXTS = ["a red boat on the lake", "boat", "two dogs"]


@pytest.fixture(autouse=True)
def nothing_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPLET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(choice, "computes_in_bf16", lambda: False)


@pytest.fixture
def expected(exported_model):
    return cliplet.load(exported_model, engine="torch").encode_text(TEXTS)


def edit(file, change):
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


# -- opening


def test_without_torch(exported_model, run_python, tmp_path, expected):
    shutil.copytree(exported_model, tmp_path / "shipped", ignore=shutil.ignore_patterns("model.safetensors"))
    code = """
import sys
sys.modules["torch"] = None
import cliplet, numpy as np
encoder = cliplet.load(sys.argv[1])
np.save(sys.argv[2], encoder.encode_text(["a red boat on the lake", "boat", "two dogs"]))
print(encoder.encode_image([np.zeros((9, 9, 3), np.uint8)]).shape, encoder.logit_scale)
"""
    done = run_python(code, tmp_path, tmp_path / "shipped", tmp_path / "rows.npy")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("(1, 16) 14.28")
    assert ((np.load(tmp_path / "rows.npy") * expected).sum(axis=1) > 0.9999).all()


def test_a_text_needs_no_decoder_of_pictures_and_no_torch(exported_model, run_python, tmp_path):
    code = """
import sys, cliplet
cliplet.load(sys.argv[1], engine="onnxruntime").encode_text(["boat"])
print(*sorted({"torch", "PIL", "simplejpeg", "openvino", "huggingface_hub", "yaml", "tyro", "rich"} & set(sys.modules)))
"""
    done = run_python(code, tmp_path, exported_model)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_an_engine_that_is_missing(exported_model, run_python, tmp_path):
    code = """
import sys
sys.modules["openvino"] = None
import cliplet
print(cliplet.load(sys.argv[1]).encode_text(["boat"]).shape)
try:
    cliplet.load(sys.argv[1], engine="openvino")
except cliplet.ClipletError as error:
    print(error)
sys.modules["onnxruntime"] = None
shipped = sys.argv[2]
try:
    cliplet.load(shipped)
except cliplet.ClipletError as error:
    print(error)
"""
    shutil.copytree(exported_model, tmp_path / "shipped", ignore=shutil.ignore_patterns("model.safetensors"))
    done = run_python(code, tmp_path, exported_model, tmp_path / "shipped")
    assert done.returncode == 0, done.stderr
    shape, missing, install, nothing, hint = done.stdout.splitlines()
    assert shape == "(1, 16)"
    assert missing == "the engine openvino is not installed" and "[openvino]" in install
    assert nothing.endswith("nothing is installed that runs it") and "onnxruntime" in hint


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "onnx"}, "no engine 'onnx'"),
        ({"precision": "int4"}, "no precision 'int4'"),
    ],
)
def test_words_that_mean_nothing(exported_model, settings, message):
    with pytest.raises(ConfigError, match=message):
        cliplet.load(exported_model, **settings)


def test_a_folder_that_was_not_exported(saved_model):
    with pytest.raises(ModelError, match="holds no exported graphs, which openvino runs") as caught:
        cliplet.load(saved_model, engine="openvino")
    assert "cliplet export" in caught.value.hint
    with pytest.raises(ModelError, match="only exported graphs give fewer dimensions"):
        cliplet.load(saved_model, dims=8)


def test_a_folder_without_weights_is_not_for_torch(exported_copy):
    (exported_copy / "model.safetensors").unlink()
    for opening in (
        lambda: DualEncoder.from_pretrained(exported_copy),
        lambda: cliplet.load(exported_copy, engine="torch"),
    ):
        with pytest.raises(ModelError, match="holds exported graphs and no weights"):
            opening()


def test_dimensions_that_were_not_exported(exported_model):
    with pytest.raises(ModelError, match="has no features of 8 dimensions; there are 16"):
        cliplet.load(exported_model, dims=8)
    assert cliplet.load(exported_model, dims=16).encode_text(TEXTS).shape == (3, 16)


# -- what was changed since the export


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_graph_that_was_changed(exported_copy, tower):
    cliplet.load(exported_copy, engine="onnxruntime")  # whose hashes are remembered from now on
    file = exported_copy / "onnx" / f"{tower}.onnx"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ModelError, match=rf"{tower}\.onnx: was changed since the export") as caught:
        cliplet.load(exported_copy)
    assert "cliplet export" in caught.value.hint


def test_a_graph_that_is_gone(exported_copy):
    (exported_copy / "onnx" / "text.onnx").unlink()
    with pytest.raises(ModelError, match=r"text\.onnx: cannot be read: No such file"):
        cliplet.load(exported_copy)


def test_a_model_that_was_changed(exported_copy):
    edit(exported_copy / "config.json", lambda data: data["model"]["preprocess"].update(mean=[0.5, 0.5, 0.5]))
    with pytest.raises(ModelError, match=r"its config\.json was changed after the export"):
        cliplet.load(exported_copy)
    assert cliplet.load(exported_copy, engine="torch")  # which reads it anew


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(format_version=2), "is of format version 2; this cliplet reads 1"),
        (lambda data: data.update(format="other"), "does not describe an export of cliplet"),
        (lambda data: data.update(embed_dim="many"), "is damaged: embed_dim"),
        (lambda data: data["graphs"].pop("text"), "is damaged: it names the graphs image"),
        (lambda data: data["graphs"]["text"].update(file="../text.onnx"), "lies outside of the folder"),
    ],
)
def test_a_description_that_is_no_good(exported_copy, change, message):
    edit(exported_copy / "onnx" / "parity.json", change)
    with pytest.raises(ModelError, match=message):
        cliplet.load(exported_copy)


def test_a_description_that_is_no_json(exported_copy):
    (exported_copy / "onnx" / "parity.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        cliplet.load(exported_copy)


def test_weights_that_were_changed(exported_copy, tiny_model):
    """The graphs are the old model: nobody is to take them for the new one."""
    import safetensors.torch

    weights = safetensors.torch.load_file(exported_copy / "model.safetensors")
    safetensors.torch.save_file(
        {name: tensor * 2 for name, tensor in weights.items()}, exported_copy / "model.safetensors"
    )
    with pytest.raises(ModelError, match=r"model\.safetensors: was changed since the export"):
        cliplet.load(exported_copy)


def test_a_tokenizer_of_another_model(exported_copy, bert_model):
    text = (exported_copy / "tokenizer.json").read_text()
    bert_model.tokenizer.save(exported_copy / "tokenizer.json")
    with pytest.raises(ModelError, match=r"its tokenizer\.json is another model's"):
        cliplet.load(exported_copy, engine="onnxruntime")
    (exported_copy / "tokenizer.json").write_text(text.replace('"lake"', '"laek"') + " ")  # of as many entries
    with pytest.raises(ModelError, match=r"tokenizer\.json: was changed since the export"):
        cliplet.load(exported_copy, engine="onnxruntime")


def test_nothing_is_reported_to_anybody(exported_model, run_python, tmp_path):
    """onnxruntime's packages report their use by themselves, unless its maker's own switch is thrown before."""
    code = """
import os, sys, cliplet
cliplet.load(sys.argv[1], engine="onnxruntime").encode_text(["boat"])
print(os.environ["ORT_DISABLE_TELEMETRY"])
"""
    assert run_python(code, tmp_path, exported_model).stdout.strip() == "1"


def test_a_user_without_a_home(exported_model, monkeypatch):
    monkeypatch.delenv("CLIPLET_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.home", nobody)
    assert "cliplet" in cache_folder().name
    assert cliplet.load(exported_model, engine="onnxruntime").encode_text(TEXTS).shape == (3, 16)


def test_an_open_model_does_not_read_its_files_again(exported_copy):
    encoder = cliplet.load(exported_copy, engine="openvino")
    picture = np.zeros((9, 9, 3), np.uint8)
    encoder.encode_image([picture])
    encoder.encode_text(TEXTS)
    shutil.rmtree(exported_copy)
    assert encoder.encode_image([picture] * 9).shape == (9, 16)
    assert encoder.encode_text(["boat"]).shape == (1, 16)


def test_a_graph_that_is_changed_while_the_model_is_open(exported_copy):
    encoder = cliplet.load(exported_copy, engine="onnxruntime")
    (exported_copy / "onnx" / "image.onnx").write_bytes(b"other")
    with pytest.raises(ModelError, match="was changed since the export"):
        encoder.encode_image([np.zeros((9, 9, 3), np.uint8)])


def test_settings_of_later_versions_change_no_hash(tiny_config):
    """A default that is written out is no change."""
    again = type(tiny_config).model_validate(tiny_config.model_dump())
    assert configuration_hash(again) == configuration_hash(tiny_config)
    other = tiny_config.model_copy(update={"embed_dim": 17})
    assert configuration_hash(other) != configuration_hash(tiny_config)


def test_a_package_of_another_name_may_hold_the_engine(exported_model, monkeypatch):
    def nothing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(choice, "version", nothing)
    assert cliplet.load(exported_model, engine="onnxruntime").encode_text(TEXTS).shape == (3, 16)


def test_a_probe_that_is_damaged(exported_copy):
    (exported_copy / "onnx" / "probe.npz").write_bytes(b"PK no more")
    with pytest.raises(ModelError, match=r"probe\.npz: cannot be read"):
        cliplet.load(exported_copy).encode_text(TEXTS)


# -- what computes wrongly


class Wrong(OnnxRuntimeGraph):
    """An engine whose sums overflow: some of the features are somewhere else."""

    def __call__(self, *inputs):
        features = super().__call__(*inputs).copy()
        features[-1] = np.roll(features[-1], 1)
        return features


class Broken:
    def __init__(self, *arguments, **settings):
        raise RuntimeError("no kernel for Frobnicate\nat line 7")


@pytest.mark.parametrize("bad", [Wrong, Broken])
def test_an_engine_that_is_wrong_on_this_processor_is_passed_over(exported_model, monkeypatch, expected, bad):
    monkeypatch.setitem(OPENERS, "openvino", bad)
    encoder = cliplet.load(exported_model)
    np.testing.assert_allclose(encoder.encode_text(TEXTS), expected, atol=1e-5)
    assert encoder.engine.describe("text") == "onnxruntime in fp32"


def test_where_all_are_wrong_torch_is_left(exported_copy, monkeypatch, expected):
    monkeypatch.setitem(OPENERS, "openvino", Broken)
    monkeypatch.setitem(OPENERS, "onnxruntime", Wrong)
    encoder = cliplet.load(exported_copy)
    np.testing.assert_allclose(encoder.encode_text(TEXTS), expected, atol=1e-6)
    assert encoder.engine.describe("text") == "torch in fp32 on cpu"
    (exported_copy / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no engine computes it rightly on this processor") as caught:
        cliplet.load(exported_copy).encode_text(TEXTS)
    assert "no kernel for Frobnicate" in caught.value.message and "0.9999" in caught.value.message
    with pytest.raises(ModelError, match="no engine computes it rightly"):
        cliplet.load(exported_copy, engine="onnxruntime").encode_text(TEXTS)


def test_what_was_found_is_remembered(exported_model, monkeypatch, tmp_path):
    looked = []

    def looking(*arguments):
        looked.append(arguments)
        return 1.0

    monkeypatch.setattr(choice, "probe_cosine", looking)
    for _ in range(3):
        cliplet.load(exported_model, engine="onnxruntime").encode_text(TEXTS)
    assert len(looked) == 1
    shutil.rmtree(tmp_path / "cache")
    cliplet.load(exported_model, engine="onnxruntime").encode_text(TEXTS)
    assert len(looked) == 2


def test_an_engine_found_wrong_stays_so(exported_model, monkeypatch):
    monkeypatch.setitem(OPENERS, "openvino", Wrong)
    cliplet.load(exported_model).encode_text(TEXTS)
    opened = []
    monkeypatch.setitem(OPENERS, "openvino", lambda *arguments, **settings: opened.append(arguments))
    cliplet.load(exported_model).encode_text(TEXTS)
    assert not opened


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_a_cache_that_cannot_be_written_costs_time_and_nothing_else(exported_model, monkeypatch, tmp_path, engine):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CLIPLET_CACHE", str(tmp_path / "file"))
    assert State("a").read() is None
    State("a").write(1)
    encoder = cliplet.load(exported_model, engine=engine)
    assert encoder.encode_text(TEXTS).shape == (3, 16)
    assert encoder.encode_image([np.zeros((9, 9, 3), np.uint8)]).shape == (1, 16)


def test_bf16_is_taken_where_it_is_as_good_and_otherwise_for_the_asking(exported_model, monkeypatch):
    monkeypatch.setattr(choice, "computes_in_bf16", lambda: True)
    found = {}
    monkeypatch.setattr(choice, "probe_cosine", lambda graph, probe, tower: found.get(graph.name, 1.0))
    assert cliplet.load(exported_model).engine.describe("text") == "openvino in bf16"
    found["openvino in bf16"] = 0.9999
    shutil.rmtree(cache_folder() / "state")
    assert cliplet.load(exported_model).engine.describe("text") == "openvino in fp32"
    assert cliplet.load(exported_model, precision="bf16").engine.describe("text") == "openvino in bf16"
    assert cliplet.load(exported_model, precision="fp32").engine.describe("text") == "openvino in fp32"


def test_bf16_where_there_is_none(exported_model):
    with pytest.raises(ModelError, match="onnxruntime computes in fp32 here"):
        cliplet.load(exported_model, engine="onnxruntime", precision="bf16")
    with pytest.raises(ModelError, match="openvino does not compute in bf16 on this processor"):
        cliplet.load(exported_model, precision="bf16")


def test_elsewhere_than_on_x86_onnxruntime_comes_first(monkeypatch):
    monkeypatch.setattr(choice.platform, "machine", lambda: "aarch64")
    assert choice.auto_candidates("fp32") == [Candidate("onnxruntime", "fp32"), Candidate("openvino", "fp32")]
    monkeypatch.setattr(choice.platform, "machine", lambda: "x86_64")
    assert choice.auto_candidates("fp32")[0].engine == "openvino"


# -- as an encoder


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_a_bad_picture_in_the_middle_is_its_own_row(exported_model, engine, tmp_path):
    encoder = cliplet.load(exported_model, engine=engine)
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 256, (40, 40, 3), dtype=np.uint8) for _ in range(23)]
    whole = encoder.encode_image(pictures)
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff no more")
    failed = {}
    got = encoder.encode_image([*pictures[:10], tmp_path / "bad.jpg", *pictures[11:]], failed=failed)
    assert set(failed) == {10} and isinstance(failed[10], ImageError) and "bad.jpg" in failed[10].message
    assert np.isnan(got[10]).all()
    rest = np.arange(23) != 10
    np.testing.assert_allclose(got[rest], whole[rest], atol=1e-5)


def test_texts_that_are_cut_are_said_once(exported_model, recwarn):
    encoder = cliplet.load(exported_model, engine="onnxruntime")
    encoder.encode_text(["a dog " * 30, "boat"])
    encoder.encode_text(["a cat " * 30])
    said = [str(one.message) for one in recwarn if "cut" in str(one.message)]
    assert said == ["texts of more than 24 tokens are cut to that many (here 1 of 2); this is said once"]


def test_cores_are_those_of_the_container(monkeypatch, tmp_path):
    import cliplet.runtime.cores as module

    bound = cores()
    for text, expected in (
        ("150000 100000", 1),
        ("max 100000", bound),
        ("400000 100000", bound),
        ("50000 100000", 1),
        ("?", bound),
    ):
        (tmp_path / "cpu.max").write_text(text)
        monkeypatch.setattr(module, "CGROUP_QUOTA", tmp_path / "cpu.max")
        assert cores.__wrapped__() == min(expected, bound)


def test_ctrl_c_after_models_came_and_went(exported_model, run_python, tmp_path):
    """OpenVINO lays a stack of its own under signal handlers; it must still be there when the signal comes."""
    pytest.importorskip("openvino")
    code = """
import faulthandler, signal, sys
faulthandler.enable()
import cliplet
first, second = (cliplet.load(sys.argv[1], engine="openvino") for _ in range(2))
for encoder in (first, second):
    encoder.encode_text(["a boat"])
del first, encoder
del second
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""
    done = run_python(code, tmp_path, exported_model)
    assert (done.returncode, done.stdout.strip()) == (0, "interrupted"), done.stderr
