"""Models that are there already: OpenCLIP's give OpenCLIP's own features, before and after they are saved."""

import json
import math
import shutil
import socket
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch.nn import functional as F

from cliplet.errors import ModelError
from cliplet.models import DualEncoder
from cliplet.models.pretrained import open_model
from cliplet.runtime.preprocess import preprocess_image

open_clip = pytest.importorskip("open_clip")

NAMES = [
    "tiny-vit",
    "tiny-gelu",
    "tiny-rn",
    "tiny-mobile",
    "tiny-timm",
    "tiny-sig",
    "tiny-clipa",
    "tiny-eos",
    "tiny-coca",
]
CAPTIONS = [
    "a red boat on the lake",
    "two dogs run in the deep snow",
    "Boat!",
    "a child with a blue_ball  and a boat" * 4,
]


def pixels_of(model, count=3):
    size = model.config.preprocess.image_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def encode(model, captions):
    with torch.no_grad():
        return model.encode_text(*(torch.from_numpy(array) for array in model.tokenizer(captions)))


def features(model):
    with torch.no_grad():
        return model.encode_image(pixels_of(model)), encode(model, CAPTIONS)


def distinct(features_ND):
    return torch.pdist(features_ND).min() > 1e-3  # else an equality of features would say nothing


@pytest.mark.parametrize("name", NAMES)
def test_features_are_open_clips_own(name, open_clip_zoo, tmp_path):
    file = open_clip_zoo(name, tmp_path)
    model = open_model(f"open_clip:{name}/{file}")
    theirs = open_clip.create_model(name, pretrained=str(file)).eval()
    images, texts = features(model)
    with torch.no_grad():
        expected_images = F.normalize(theirs.encode_image(pixels_of(model)))
        expected_texts = F.normalize(theirs.encode_text(open_clip.get_tokenizer(name)(CAPTIONS)))
    torch.testing.assert_close(images, expected_images, atol=1e-5, rtol=0)
    torch.testing.assert_close(texts, expected_texts, atol=1e-5, rtol=0)
    assert distinct(images) and distinct(texts)
    assert not model.training


@pytest.mark.parametrize("name", NAMES)
def test_padding_never_changes_a_feature(name, open_clip_zoo, tmp_path):
    model = open_model(f"open_clip:{name}/{open_clip_zoo(name, tmp_path)}")
    captions = CAPTIONS[:3]  # the fourth is cut, and leaves no room for padding
    alone = torch.cat([encode(model, [caption]) for caption in captions])
    ids, mask = (torch.from_numpy(array) for array in model.tokenizer(captions))
    assert ids.shape[1] < 16 and mask.sum(1).unique().numel() > 1
    garbage = torch.where(mask == 1, ids, 5 + torch.arange(ids.shape[1]))
    wider = F.pad(garbage, (0, 16 - ids.shape[1]), value=6), F.pad(mask, (0, 16 - ids.shape[1]))
    with torch.no_grad():
        for padded in ((ids, mask), (garbage, mask), wider):
            torch.testing.assert_close(model.encode_text(*padded), alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_opens_without_weights_network_or_architecture(name, open_clip_zoo, tmp_path, monkeypatch):
    file = open_clip_zoo(name, tmp_path)
    model = open_model(f"open_clip:{name}/{file}")
    model.save_pretrained(tmp_path / "run" / "model")
    file.unlink()

    def refuse(*arguments, **keywords):
        raise AssertionError("something was asked for that a model folder must not need")

    for owner, attribute in (
        (socket.socket, "connect"),
        (open_clip, "list_models"),
        (open_clip, "get_model_config"),
        (open_clip.tokenizer, "HFTokenizer"),
        (open_clip.tokenizer, "SimpleTokenizer"),
    ):
        monkeypatch.setattr(owner, attribute, refuse)
    for folder in (tmp_path / "run" / "model", tmp_path / "run"):
        again = open_model(folder)
        assert again.config == model.config
        assert not again.training
        for ours, saved in zip(features(again), features(model), strict=True):
            torch.testing.assert_close(ours, saved, atol=1e-6, rtol=0)


def test_a_model_folder_opens_as_itself(saved_model):
    model, same = open_model(saved_model), DualEncoder.from_pretrained(str(saved_model))
    assert all(torch.equal(value, same.state_dict()[key]) for key, value in model.state_dict().items())


def test_a_folder_without_a_model_is_an_error(tmp_path):
    with pytest.raises(ModelError, match="is no model folder"):
        open_model(tmp_path)
    with pytest.raises(ModelError, match="no such model folder"):
        open_model(tmp_path / "none")


def test_scale_and_bias_are_the_weights_own(open_clip_zoo, tmp_path):
    softmax = open_model(f"open_clip:tiny-vit/{open_clip_zoo('tiny-vit', tmp_path)}")
    assert softmax.logit_scale.item() == pytest.approx(math.exp(3.9), rel=1e-6)
    assert softmax.logit_bias is None
    assert (softmax.config.temperature.minimum, softmax.config.temperature.maximum) == (1, 100)
    sigmoid = open_model(f"open_clip:tiny-sig/{open_clip_zoo('tiny-sig', tmp_path)}")
    assert sigmoid.logit_bias.item() == -7.5


@pytest.mark.parametrize("log_scale", [-1.0, 4.75])
def test_a_scale_beyond_the_usual_bounds_is_held_by_its_own(log_scale, open_clip_zoo, tmp_path):
    file = open_clip_zoo("tiny-vit", tmp_path)
    weights = safetensors.torch.load_file(file)
    weights["logit_scale"] = torch.tensor([log_scale])  # a vector of one, as some files have it
    safetensors.torch.save_file(weights, file)
    model = open_model(f"open_clip:tiny-vit/{file}")
    model.temperature.clamp_()
    assert model.logit_scale.item() == pytest.approx(math.exp(log_scale), rel=1e-6)


@pytest.mark.parametrize("log_scale", [math.nan, 1000.0])
def test_a_scale_that_is_no_number_is_an_error(log_scale, open_clip_zoo, tmp_path):
    file = open_clip_zoo("tiny-vit", tmp_path)
    weights = safetensors.torch.load_file(file)
    weights["logit_scale"].fill_(log_scale)
    safetensors.torch.save_file(weights, file)
    with pytest.raises(ModelError, match=r"temperature\.init"):
        open_model(f"open_clip:tiny-vit/{file}")


# -- files


@pytest.mark.parametrize("style", ["old names", "new names", "checkpoint", "half", "openai"])
def test_weights_files_of_all_styles_are_one(style, open_clip_zoo, tmp_path):
    file = open_clip_zoo("tiny-vit", tmp_path)
    expected = features(open_model(f"open_clip:tiny-vit/{file}"))
    weights = safetensors.torch.load_file(file)
    assert "text_projection" in weights
    if style == "new names":
        weights = open_clip.model.convert_to_custom_text_state_dict(weights)
        assert "text.text_projection" in weights
    other = tmp_path / "weights.pt"
    table = dict(weights)
    if style == "checkpoint":
        table = {"epoch": 3, "name": "run", "state_dict": {f"module.{key}": value for key, value in weights.items()}}
    if style == "half":
        table = {key: value.half() for key, value in weights.items()}
    if style == "openai":
        table |= {"input_resolution": torch.tensor(32), "context_length": torch.tensor(16), "vocab_size": 49408}
    torch.save(table, other)
    model = open_model(f"open_clip:tiny-vit/{other}")
    tolerance = 5e-3 if style == "half" else 1e-6
    for ours, theirs in zip(features(model), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_names_of_another_model_are_told(open_clip_zoo, tmp_path):
    file = open_clip_zoo("tiny-vit", tmp_path)
    weights = safetensors.torch.load_file(file)
    del weights["logit_scale"], weights["visual.proj"]
    weights["visual.head.weight"] = torch.zeros(2)
    weights["ln_final.weight"] = torch.ones(7)
    safetensors.torch.save_file(weights, file)
    with pytest.raises(ModelError) as caught:
        open_model(f"open_clip:tiny-vit/{file}")
    assert str(file) in caught.value.message
    assert "2 missing (logit_scale, visual.proj)" in caught.value.message
    assert "1 left over (visual.head.weight)" in caught.value.message
    assert "1 of another shape (text.ln_final.weight is (7,), expected (32,))" in caught.value.message


class Touch:
    """Unpickled, it writes a file."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return (open, (str(self.place), "w"))


@pytest.mark.parametrize("kind", ["code", "text", "list", "nested", "missing"])
def test_a_file_of_something_else_is_refused(kind, open_clip_zoo, tmp_path):
    file, mark = tmp_path / "weights.pt", tmp_path / "touched"
    if kind == "code":
        torch.save({"state_dict": Touch(mark)}, file)
    elif kind == "text":
        file.write_text("no weights")
    elif kind != "missing":
        torch.save({"list": [torch.zeros(1)], "nested": {"visual": {"proj": torch.zeros(1)}}}[kind], file)
    reason = {"code": "cannot be opened", "text": "cannot be opened", "missing": "no such file"}.get(kind, "no plain")
    with pytest.raises(ModelError, match=reason) as caught:
        open_model(f"open_clip:tiny-vit/{file}")
    assert str(file) in caught.value.message
    assert not mark.exists()


# -- names


def test_an_unknown_architecture_offers_near_ones():
    with pytest.raises(ModelError, match="no OpenCLIP architecture 'ViT-B-33'") as caught:
        open_model("open_clip:ViT-B-33/openai")
    assert "ViT-B-32" in caught.value.hint


def test_an_unknown_tag_offers_near_ones(open_clip_zoo):
    with pytest.raises(ModelError, match="ViT-B-32/laion2b_s34b_b80k: no such pretrained weights") as caught:
        open_model("open_clip:ViT-B-32/laion2b_s34b_b80k")
    assert "laion2b_s34b_b79k" in caught.value.hint
    with pytest.raises(ModelError, match="no such pretrained weights") as caught:
        open_model("open_clip:ViT-B-32")
    assert "openai" in caught.value.hint
    with pytest.raises(ModelError, match="no such pretrained weights") as caught:
        open_model("open_clip:tiny-vit/openai")
    assert "name a local weights file" in caught.value.hint


def test_without_a_network_a_tag_says_what_to_do_instead():
    with pytest.raises(ModelError, match="hub cannot be reached") as caught:
        open_model("open_clip:ViT-B-32/laion2b_s34b_b79k")
    assert "open_clip:ViT-B-32/path/to/weights.safetensors" in caught.value.hint


def test_a_hugging_face_text_side_is_refused_before_anything_is_fetched(monkeypatch):
    monkeypatch.setattr(open_clip.pretrained, "download_pretrained", lambda record: pytest.fail("fetched"))
    with pytest.raises(ModelError, match="Hugging Face model roberta-base inside OpenCLIP, which is not supported"):
        open_model("open_clip:roberta-ViT-B-32/laion2b_s12b_b32k")


def test_without_the_package_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ModelError, match="needs the package open_clip_torch") as caught:
        open_model("open_clip:ViT-B-32/openai")
    assert caught.value.hint == "pip install open_clip_torch"


# -- what OpenCLIP has on record of weights


@pytest.fixture
def tagged(open_clip_zoo, tmp_path, monkeypatch):
    """Puts weights of tiny-vit on record under the tag `good`; gives their file."""
    file = open_clip_zoo("tiny-vit", tmp_path)

    def record(**what):
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-vit", {"good": {"file": str(file), **what}})
        return file

    return record


def test_a_tag_brings_its_activation_and_its_preprocessing(tagged):
    file = tagged(quick_gelu=True, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), resize_mode="squash")
    model = open_model("open_clip:tiny-vit/good")
    assert model.config.preprocess.mean == (0.5, 0.4, 0.3)
    assert model.config.preprocess.std == (0.2, 0.3, 0.4)
    assert model.config.preprocess.resize == "squash"
    quick, plain = (
        open_clip.create_model("tiny-vit", pretrained=str(file), force_quick_gelu=flag).eval() for flag in (True, False)
    )
    with torch.no_grad():
        ours = model.encode_image(pixels_of(model))
        torch.testing.assert_close(ours, quick.encode_image(pixels_of(model), normalize=True), atol=1e-5, rtol=0)
        assert (ours - plain.encode_image(pixels_of(model), normalize=True)).abs().max() > 1e-3


def test_a_file_is_prepared_for_as_all_tags_agree(tagged):
    file = tagged(mean=(0.5, 0.5, 0.5), resize_mode="squash")
    preprocess = open_model(f"open_clip:tiny-vit/{file}").config.preprocess
    assert preprocess.mean == (0.5, 0.5, 0.5)
    assert preprocess.resize == "squash"


def test_a_file_is_prepared_for_as_the_record_beside_it_says(tagged):
    file = tagged(mean=(0.5, 0.5, 0.5))
    beside = file.parent / "open_clip_config.json"
    what = {"model_cfg": {"quick_gelu": True}, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}}
    beside.write_text(json.dumps(what))
    model = open_model(f"open_clip:tiny-vit/{file}")
    assert model.image_tower.architecture["quick_gelu"] and model.text_tower.architecture["quick_gelu"]
    preprocess = model.config.preprocess
    assert preprocess.mean == (0.1, 0.2, 0.3)
    assert preprocess.std == (1, 1, 1)
    assert preprocess.resize == "crop"
    for text, reason in (
        ("[]", "no description"),
        ("{", "no description"),
        ('{"preprocess_cfg": {"mean": 3}}', "preprocess"),
        ('{"preprocess_cfg": {"resize_mode": ["longest"]}}', "resizes its pictures"),
    ):
        beside.write_text(text)
        with pytest.raises(ModelError, match=reason):
            open_model(f"open_clip:tiny-vit/{file}")


def test_a_way_of_resizing_that_cliplet_does_not_have_is_an_error(tagged):
    tagged(resize_mode="longest")
    with pytest.raises(ModelError, match="resizes its pictures by 'longest'"):
        open_model("open_clip:tiny-vit/good")
    tagged(interpolation="nearest")
    with pytest.raises(ModelError, match="'nearest' interpolation"):
        open_model("open_clip:tiny-vit/good")


def test_another_interpolation_is_approximated_with_a_word(tagged):
    tagged(interpolation="bilinear")
    with pytest.warns(UserWarning, match="features differ a little"):
        open_model("open_clip:tiny-vit/good")


@pytest.mark.parametrize(("resize_mode", "size"), [("shortest", (32, 48)), ("squash", (70, 50))])
def test_pictures_are_prepared_as_open_clip_does(resize_mode, size, tagged):
    file = tagged(resize_mode=resize_mode)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    model = open_model("open_clip:tiny-vit/good")
    theirs, _, prepare = open_clip.create_model_and_transforms(
        "tiny-vit", pretrained=str(file), image_resize_mode=resize_mode
    )
    pixels = torch.tensor(preprocess_image(picture, model.config.preprocess)).permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = theirs.eval().encode_image(prepare(picture)[None], normalize=True)
        torch.testing.assert_close(model.encode_image(pixels), expected, atol=1e-5, rtol=0)


def test_a_tokenizer_beside_the_weights_is_taken_before_the_hubs(open_clip_zoo, tmp_path, monkeypatch):
    file = open_clip_zoo("tiny-eos", tmp_path)
    expected = encode(open_model(f"open_clip:tiny-eos/{file}"), CAPTIONS)
    described = open_clip.get_model_config("tiny-eos")
    place = described["text_cfg"]["hf_tokenizer_name"]
    described["text_cfg"]["hf_tokenizer_name"] = "nobody/has-this"
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-eos", described)
    with pytest.raises(ModelError, match="tokenizer nobody/has-this could not be loaded") as caught:
        open_model(f"open_clip:tiny-eos/{file}")
    assert "tokenizer.json in the same folder" in caught.value.hint
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(f"{place}/{name}", tmp_path / name)
    assert torch.equal(encode(open_model(f"open_clip:tiny-eos/{file}"), CAPTIONS), expected)


# -- training on


def test_gradients_reach_every_parameter(open_clip_zoo, tmp_path):
    for name in ("tiny-vit", "tiny-rn", "tiny-sig"):
        model = open_model(f"open_clip:{name}/{open_clip_zoo(name, tmp_path)}").train()
        ids, mask = (torch.from_numpy(array) for array in model.tokenizer(CAPTIONS[:3]))
        output = model(pixels_of(model), ids, mask)
        logits = output.logit_scale * output.image_features @ output.text_features.T
        if output.logit_bias is not None:
            logits = logits + output.logit_bias
        F.softplus(-logits * (2 * torch.eye(3) - 1)).sum().backward()
        silent = [key for key, value in model.named_parameters() if value.grad is None or not value.grad.any()]
        assert silent == [], name
        assert all(value.grad.isfinite().all() for value in model.parameters())
