"""Weights come from where they are said to come from, whole, in order, and without running anybody's code."""

import pickle
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import safetensors.torch
import torch
from huggingface_hub import constants
from torch import nn

from cliplet.config import ImageTowerConfig, TextTowerConfig
from cliplet.errors import ModelError
from cliplet.models import DualEncoder
from cliplet.models.huggingface import build_model
from cliplet.models.sources import first_that_loads, load_exactly, look_for_the_hub, read_weights, resolve


class Evil:
    """A pickle of it makes a file when it is opened."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".pkl"])
@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_pickle_of_code_is_refused_and_never_runs(tmp_path, suffix, form):
    bomb, trace = tmp_path / f"weights{suffix}", tmp_path / "trace"
    weights = {"weight": torch.zeros(2, 2), "evil": Evil(trace)}
    if form == "torch":
        torch.save(weights, bomb)
    else:
        bomb.write_bytes(pickle.dumps(weights, protocol=2))
    with pytest.raises(ModelError, match="cannot be opened as weights"):
        read_weights(bomb)
    assert not trace.exists()
    if form == "torch":
        torch.load(bomb, weights_only=False)
    else:
        pickle.loads(bomb.read_bytes())
    assert trace.exists()  # the bomb was a real one


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_weights_are_read_as_they_were_written(tmp_path, suffix):
    weights = {"a": torch.randn(3, 2), "b": torch.arange(4)}
    file = tmp_path / f"weights{suffix}"
    save = safetensors.torch.save_file if suffix == ".safetensors" else torch.save
    save(weights, file)
    read = read_weights(file)
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in weights.items())


def test_what_is_no_table_of_tensors_is_refused(tmp_path):
    for number, content in enumerate(([torch.zeros(1)], {"state_dict": {"a": torch.zeros(1)}}, torch.zeros(1))):
        torch.save(content, tmp_path / f"{number}.pt")
        with pytest.raises(ModelError, match="no plain table"):
            read_weights(tmp_path / f"{number}.pt")


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\x80\x02 cut"])
def test_broken_files_are_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=f"{name}: cannot be opened as weights"):
        read_weights(tmp_path / name)
    with pytest.raises(ModelError, match="no such file"):
        read_weights(tmp_path / "none" / name)


def test_missing_left_over_and_other_shapes_are_counted_and_named():
    module = nn.ModuleDict({name: nn.Linear(2, 3) for name in "abcd"})
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    weights = {
        "a.weight": torch.zeros(3, 2),
        "a.bias": torch.zeros(4),
        "extra": torch.zeros(1),
        "head.bias": torch.zeros(1),
    }
    with pytest.raises(ModelError) as caught:
        load_exactly(module, weights, "place", ignore=("head.",))
    assert caught.value.message == (
        "place: its weights do not fit: 6 missing (b.weight, b.bias, c.weight, ...); "
        "1 left over (extra); 1 of another shape (a.bias is (4,), expected (3,))"
    )
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())  # untouched


def test_a_classifier_may_be_left_over():
    module = nn.Linear(2, 3)
    weights = {"weight": torch.ones(3, 2), "bias": torch.ones(3), "head.weight": torch.ones(9)}
    load_exactly(module, weights, "place", ignore=("head.",))
    assert torch.equal(module.weight, torch.ones(3, 2))
    with pytest.raises(ModelError, match=r"1 left over \(head.weight\)"):
        load_exactly(module, weights, "place")


def test_sources_are_tried_in_order_and_each_failure_is_told():
    tried, said = [], []

    def load(source):
        tried.append(source)
        if source != "good":
            raise ModelError(f"{source} is broken")
        return "loaded"

    assert first_that_loads("tower", ["a", "b", "good", "never"], load, said.append) == "loaded"
    assert tried == ["a", "b", "good"]
    assert said == [
        *(f"tower: {name} failed, trying the next: {name} is broken" for name in "ab"),
        "tower: taken from good",
    ]


def test_when_all_fail_all_are_listed():
    said = []

    def load(source):
        raise ModelError(f"{source} is broken")

    with pytest.raises(ModelError) as caught:
        first_that_loads("tower", ["a", "b"], load, said.append)
    assert "a: a is broken" in caught.value.message and "b: b is broken" in caught.value.message
    assert len(said) == 1 and "Without a network" in caught.value.hint


def test_other_errors_are_not_swallowed():
    with pytest.raises(ZeroDivisionError):
        first_that_loads("tower", ["a", "b"], lambda source: 1 / 0, print)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed Python package with files in it."""
    folder = tmp_path / "site" / "tiny_weights_package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('a package of weights is never imported')")
    monkeypatch.syspath_prepend(str(folder.parent))
    return folder


def test_pkg_leads_into_the_package_without_importing_it(package):
    assert Path(resolve("pkg:tiny_weights_package/sub/model")) == package / "sub" / "model"
    assert Path(resolve("pkg:tiny_weights_package")) == package
    assert "tiny_weights_package" not in sys.modules


@pytest.mark.parametrize("source", ["pkg:", "pkg:no_such_package_at_all/x", "pkg:a-b/x", "pkg:../x", "pkg:json.tool/x"])
def test_a_package_that_is_not_there(source):
    with pytest.raises(ModelError, match="is not installed"):
        resolve(source)


def test_everything_else_is_left_as_it_is():
    assert resolve("hub") == "hub" and resolve("org/name") == "org/name"


def test_image_weights_from_file_folder_and_package(tiny_config, tiny_model, captions, package, tmp_path):
    weights = {name: (tensor + 1).contiguous() for name, tensor in tiny_model.image_tower.model.state_dict().items()}
    weights |= {"fc.weight": torch.zeros(9, 96), "fc.bias": torch.zeros(9)}  # the classifier, which is left over
    safetensors.torch.save_file(weights, package / "model.safetensors")
    torch.save(weights, tmp_path / "model.pt")
    sources = [
        (str(package / "model.safetensors"),),
        (str(package),),
        ("pkg:tiny_weights_package/model.safetensors",),
        (str(tmp_path / "model.pt"),),
        (str(tmp_path / "none.pt"), str(tmp_path), str(tmp_path / "model.pt")),
    ]
    for source in sources:
        said = []
        image = tiny_config.image.model_copy(update={"weights": source})
        model = DualEncoder.build(tiny_config.model_copy(update={"image": image}), captions, said.append)
        loaded = model.image_tower.model.state_dict()
        assert all(torch.equal(weights[name], tensor) for name, tensor in loaded.items())
        assert len(said) == (len(source) if len(source) > 1 else 0)  # each failure, and then what was taken
        assert all(line.startswith("image tower test_resnet: ") for line in said)


def test_image_weights_of_another_network(tiny_config, captions, tmp_path):
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pt")
    image = ImageTowerConfig(name="test_resnet", weights=(str(tmp_path / "other.pt"), "pkg:nowhere_at_all/x"))
    with pytest.raises(ModelError) as caught:
        DualEncoder.build(tiny_config.model_copy(update={"image": image}), captions)
    assert "image tower test_resnet: none of its sources" in caught.value.message
    assert "missing" in caught.value.message and "1 left over (conv.weight)" in caught.value.message
    assert "nowhere_at_all is not installed" in caught.value.message


@pytest.fixture
def no_hub(tmp_path, monkeypatch):
    """No network, and nothing kept from an earlier one."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))


def test_image_hub_without_a_network_fails_soon_and_says_so(no_hub, tiny_config, captions):
    image = ImageTowerConfig(name="test_resnet", weights=("hub",))
    start = time.monotonic()
    with pytest.raises(ModelError) as caught:
        DualEncoder.build(tiny_config.model_copy(update={"image": image}), captions)
    assert time.monotonic() - start < 10
    assert "hub: the hub could not be used" in caught.value.message and "local file" in caught.value.hint


def test_text_sources_fall_back_from_hub_to_folder(no_hub, make_bert, tiny_config, tmp_path):
    folder = make_bert(tmp_path / "bert")
    sources = ("pkg:no_such_package_at_all/model", "no-such-org/no-such-model", str(folder))
    said = []
    text = TextTowerConfig(kind="huggingface", sources=sources, context_length=24)
    start = time.monotonic()
    model = DualEncoder.build(tiny_config.model_copy(update={"text": text}), (), said.append)
    assert time.monotonic() - start < 10
    assert [line.split(" failed")[0] for line in said[:-1]] == [f"text tower: {source}" for source in sources[:2]]
    assert said[-1] == f"text tower: taken from {folder}"
    from transformers import BertModel

    original = BertModel.from_pretrained(folder).state_dict()
    loaded = model.text_tower.model.state_dict()
    assert loaded and all(torch.equal(original[name], tensor) for name, tensor in loaded.items())
    assert model.tokenizer.vocab_size == original["embeddings.word_embeddings.weight"].shape[0]


def test_text_sources_that_all_fail_are_all_listed(no_hub, make_bert, tiny_config, tmp_path):
    folder = make_bert(tmp_path / "bert", positions=8)
    sources = ("no-such-org/no-such-model", "pkg:tokenizers/no_such_folder", str(folder))
    text = TextTowerConfig(kind="huggingface", sources=sources, context_length=24)
    with pytest.raises(ModelError) as caught:
        DualEncoder.build(tiny_config.model_copy(update={"text": text}))
    assert all(source in caught.value.message for source in sources)
    assert "no such folder" in caught.value.message
    assert "reads at most 8 tokens, but model.text.context_length is 24" in caught.value.message


def test_text_tower_without_sources_says_what_to_set(tiny_config):
    text = TextTowerConfig(kind="huggingface")
    with pytest.raises(ModelError, match=r"names neither pretrained weights nor an architecture\nSet its sources"):
        DualEncoder.build(tiny_config.model_copy(update={"text": text}))


VIT = {
    "model_type": "vit",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}


@pytest.fixture
def vit_folder(package):
    """A tiny ViT as transformers saves it, in an installed package."""
    torch.manual_seed(0)
    build_model(VIT, "image tower").save_pretrained(package / "vit")
    return package / "vit"


def test_hugging_face_image_sources_fall_back_to_folder_and_package(no_hub, vit_folder, tiny_config, captions):
    from transformers import AutoModel

    original = AutoModel.from_pretrained(vit_folder).state_dict()
    for sources in (
        ("no-such-org/no-such-model", "pkg:no_such_package_at_all/vit", str(vit_folder)),
        ("pkg:tiny_weights_package/none", "pkg:tiny_weights_package/vit", "never-asked"),
    ):
        said = []
        image = ImageTowerConfig(kind="huggingface", weights=sources, pooling="first")
        model = DualEncoder.build(tiny_config.model_copy(update={"image": image}), captions, said.append)
        failed = [source for source in sources[:-1] if source != "pkg:tiny_weights_package/vit"]
        assert [line.split(" failed")[0] for line in said[:-1]] == [f"image tower: {source}" for source in failed]
        assert not failed or said[-1].startswith("image tower: taken from ")
        loaded = model.image_tower.model.state_dict()
        assert loaded and not any("pooler" in name for name in loaded)
        assert all(torch.equal(original[name], tensor) for name, tensor in loaded.items())


def test_hugging_face_image_sources_that_all_fail_are_all_listed(no_hub, vit_folder, make_bert, tiny_config, tmp_path):
    text = make_bert(tmp_path / "bert")
    sources = ("no-such-org/no-such-model", "pkg:tokenizers/no_such_folder", str(text))
    image = ImageTowerConfig(kind="huggingface", weights=sources, pooling="mean")
    start = time.monotonic()
    with pytest.raises(ModelError) as caught:
        DualEncoder.build(tiny_config.model_copy(update={"image": image}), ["a dog"])
    assert time.monotonic() - start < 10
    assert all(f"  {source}: " in caught.value.message for source in sources)
    assert "no_such_folder: no such folder" in caught.value.message and "Without a network" in caught.value.hint


def test_a_hugging_face_source_for_another_size_gives_way_to_the_next(package, vit_folder, tiny_config, captions):
    torch.manual_seed(0)
    build_model({**VIT, "image_size": 64}, "image tower").save_pretrained(package / "large")
    said = []
    image = ImageTowerConfig(kind="huggingface", weights=(str(package / "large"), str(vit_folder)), pooling="mean")
    DualEncoder.build(tiny_config.model_copy(update={"image": image}), captions, said.append)
    assert len(said) == 2 and "cannot be built for 32 pixels" in said[0]


@pytest.mark.parametrize("answers", [True, False])
def test_where_the_hub_does_not_answer_its_client_goes_offline_at_once(answers, monkeypatch):
    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, *words):
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{hub.server_port if answers else 9}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        look_for_the_hub.cache_clear()
        try:
            look_for_the_hub()
            assert (not answers) == constants.HF_HUB_OFFLINE
        finally:
            look_for_the_hub.cache_clear()
            hub.shutdown()
