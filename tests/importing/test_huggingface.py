"""Folders of CLIPModel and VisionTextDualEncoderModel, held against transformers itself."""

import json
import re

import pytest
import safetensors.torch
import torch
import transformers

from cliplet.errors import ModelError
from cliplet.importing import Options, import_any
from cliplet.models import DualEncoder

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
PICTURE = {"image_size": 32, "patch_size": 16}


def clip(rows, eos):
    text = {**SMALL, "vocab_size": rows, "max_position_embeddings": 20, "pad_token_id": rows - 1}
    config = transformers.CLIPConfig(
        text_config={**text, "bos_token_id": rows - 2, "eos_token_id": rows - 1 if eos is None else eos},
        vision_config={**SMALL, **PICTURE},
        projection_dim=16,
    )
    return transformers.CLIPModel(config)


def dual(text, vision=None):
    vision = vision or transformers.ViTConfig(**SMALL, **PICTURE)
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=16)
    return transformers.VisionTextDualEncoderModel(config)


def bert(rows):
    return transformers.BertConfig(**SMALL, vocab_size=rows, max_position_embeddings=20)


def roberta(rows):
    return transformers.RobertaConfig(**SMALL, vocab_size=rows, max_position_embeddings=22, type_vocab_size=1)


MODELS = {
    "clip": lambda rows: clip(rows, None),
    "clip as OpenAI's": lambda rows: clip(rows, 2),  # with which the text's highest number marks its end
    "bert": lambda rows: dual(bert(rows)),
    "roberta": lambda rows: dual(roberta(rows)),
    "clip's vision": lambda rows: dual(bert(rows), transformers.CLIPVisionConfig(**SMALL, **PICTURE)),
}


@pytest.fixture
def make_folder(tmp_path, write_tokenizer, reference):
    """A model as transformers saves it, and its folder with a tokenizer.json."""

    def make(name):
        folder = tmp_path / "theirs"
        folder.mkdir()
        rows = write_tokenizer("bert" if name == "clip's vision" else name.split()[0], folder / "tokenizer.json")
        torch.manual_seed(0)
        model = reference.perturb(MODELS[name](rows))
        torch.nn.init.constant_(model.logit_scale, 3.3)
        model.save_pretrained(folder)
        return model, folder

    return make


def imported(folder, **options):
    return import_any(str(folder), None, Options(**options))


def rewrite(folder, change):
    """The folder's weights, changed."""
    file = folder / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    change(weights)
    safetensors.torch.save_file(weights, file, metadata={"format": "pt"})


def features_of(output):
    """transformers 5 wraps them."""
    return torch.nn.functional.normalize(getattr(output, "pooler_output", output), dim=-1)


def assert_same(model, theirs, texts):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.nn.functional.interpolate(torch.randn(3, 3, 4, 4, generator=generator), 32)
    ids, mask = map(torch.from_numpy, model.tokenizer(texts))
    assert not mask.all()
    assert not model.training
    with torch.no_grad():
        image, text = model.encode_image(pixels), model.encode_text(ids, mask)
        theirs_image = features_of(theirs.get_image_features(pixels))
        theirs_text = features_of(theirs.get_text_features(input_ids=ids, attention_mask=mask))
        logits = theirs(pixel_values=pixels, input_ids=ids, attention_mask=mask).logits_per_image
        for ours, expected in ((image, theirs_image), (text, theirs_text)):
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
            assert torch.pdist(expected).min() > 1e-2  # or equal features would say little
        torch.testing.assert_close(model.logit_scale, theirs.logit_scale.exp())
        torch.testing.assert_close(model.logit_scale * image @ text.T, logits, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_features_and_scale_are_theirs_also_when_saved_and_opened(name, make_folder, texts, tmp_path):
    theirs, folder = make_folder(name)
    model = imported(folder)
    assert_same(model, theirs, texts)
    model.save_pretrained(tmp_path / "model")
    assert_same(DualEncoder.from_pretrained(tmp_path / "model"), theirs, texts)


@pytest.mark.parametrize("name", ["clip", "bert", "roberta"])
def test_the_longest_text_is_the_longest_that_they_read(name, make_folder):
    theirs, folder = make_folder(name)
    model = imported(folder)
    assert model.config.text.context_length == 20
    ids, mask = map(torch.from_numpy, model.tokenizer(["boat " * 30]))
    assert ids.shape == (1, 20)
    with torch.no_grad():
        expected = features_of(theirs.get_text_features(input_ids=ids, attention_mask=mask))
        torch.testing.assert_close(model.encode_text(ids, mask), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["clip", "bert"])
def test_numbers_of_positions_that_older_versions_saved_are_ignored(name, make_folder, texts):
    theirs, folder = make_folder(name)
    numbers = torch.arange(20)[None]
    places = ["text_model"] if name == "bert" else ["text_model", "vision_model"]
    rewrite(folder, lambda weights: weights.update({f"{at}.embeddings.position_ids": numbers + 0 for at in places}))
    assert_same(imported(folder), theirs, texts)


def test_half_precision_weights_become_single_precision(make_folder, texts):
    theirs, folder = make_folder("bert")
    theirs.half().save_pretrained(folder)
    model = imported(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert_same(model, theirs.float(), texts)


# Pictures


def test_pictures_are_seen_as_clip_sees_them_where_the_folder_does_not_say(make_folder):
    _, folder = make_folder("clip")
    preprocess = imported(folder).config.preprocess
    processor = transformers.CLIPImageProcessor()
    assert preprocess.mean == tuple(processor.image_mean) and preprocess.std == tuple(processor.image_std)
    assert (preprocess.image_size, preprocess.resize, preprocess.crop_fraction) == (32, "crop", 1.0)


@pytest.mark.parametrize("inside", [False, True])
def test_pictures_are_seen_as_the_folder_says(inside, make_folder):
    _, folder = make_folder("bert")
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}, image_std=[0.4, 0.5, 0.6]).save_pretrained(folder)
    file = folder / "preprocessor_config.json"
    if inside:  # as processors of both sides together are saved
        (folder / "processor_config.json").write_text(json.dumps({"image_processor": json.loads(file.read_text())}))
        file.unlink()
    preprocess = imported(folder).config.preprocess
    assert preprocess.mean == (0.5, 0.5, 0.5) and preprocess.std == (0.4, 0.5, 0.6)
    assert preprocess.image_size == 32 and preprocess.resize == "squash"


@pytest.mark.parametrize(
    ("said", "resize", "fraction"),
    [
        ({"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}, "crop", 0.8),
        ({"size": 40, "do_center_crop": True}, "crop", 0.8),  # as files of 2021 say it
        ({"size": 32}, "squash", 1.0),
        ({"size": {"shortest_edge": 16}}, "crop", 1.0),
    ],
)
def test_sizes_and_crops(said, resize, fraction, make_folder):
    _, folder = make_folder("clip")
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False, **said}))
    preprocess = imported(folder).config.preprocess
    assert (preprocess.image_size, preprocess.resize, preprocess.crop_fraction) == (32, resize, fraction)
    assert (preprocess.mean, preprocess.std) == ((0, 0, 0), (1, 1, 1))


@pytest.mark.parametrize("text", ["{", "[]", '{"size": "large"}', '{"image_mean": [0.5]}', '{"image_std": "x"}'])
def test_a_damaged_word_on_pictures_is_refused(text, make_folder):
    _, folder = make_folder("clip")
    (folder / "preprocessor_config.json").write_text(text)
    with pytest.raises(ModelError, match=r"preprocessor_config\.json: cannot be read: "):
        imported(folder)


# Tokenizers


@pytest.mark.parametrize("name", ["clip", "bert", "roberta"])
def test_a_folder_without_tokenizer_asks_for_one(name, make_folder, texts, tmp_path):
    theirs, folder = make_folder(name)
    (folder / "tokenizer.json").rename(tmp_path / "elsewhere.json")
    with pytest.raises(ModelError) as caught:
        imported(folder)
    assert "tokenizer" in caught.value.message and "--tokenizer" in caught.value.hint
    assert_same(imported(folder, tokenizer=str(tmp_path / "elsewhere.json")), theirs, texts)


@pytest.mark.parametrize("other", ["gpt", "clip"])
def test_a_tokenizer_of_another_model_is_refused(other, make_folder, write_tokenizer):
    _, folder = make_folder("bert")
    file = folder / "tokenizer.json"
    if other == "clip":  # a few entries, as if it were empty
        backend = json.loads(file.read_text())
        backend["model"]["vocab"] = dict(list(backend["model"]["vocab"].items())[:6])
        file.write_text(json.dumps(backend))
    else:
        write_tokenizer(other, file)
    with pytest.raises(ModelError, match="do not belong together") as caught:
        imported(folder)
    assert "--tokenizer" in caught.value.hint


# Refusals


@pytest.mark.parametrize("kind", ["siglip", "bert", "clap", None, 3])
def test_a_model_of_another_kind_is_refused(kind, make_folder):
    _, folder = make_folder("clip")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": kind}))
    with pytest.raises(ModelError) as caught:
        imported(folder)
    assert f"holds a model of type {kind!r}" in caught.value.message and "clip" in caught.value.hint


@pytest.mark.parametrize("text", ["{", "[]", None])
def test_a_folder_without_a_readable_configuration_is_refused(text, make_folder):
    _, folder = make_folder("clip")
    (folder / "config.json").unlink()
    if text is not None:
        (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json cannot be read|holds a model of type None"):
        imported(folder)


def test_weights_cut_short_are_refused(make_folder):
    _, folder = make_folder("clip")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ModelError, match="cannot be opened: "):
        imported(folder)
    file.unlink()
    with pytest.raises(ModelError, match="cannot be opened: "):
        imported(folder)


def test_weights_that_do_not_fit_are_named_and_counted(make_folder):
    _, folder = make_folder("bert")
    whole = safetensors.torch.load_file(folder / "model.safetensors")
    expectations = [
        ({"visual_projection.weight": None}, r"1 missing \(visual_projection\.weight\)$"),
        ({"text_model.pooler.dense.weight": None, "logit_scale": None}, r"2 missing \(logit_scale, text_model\.pooler"),
        ({"teacher.weight": torch.zeros(2)}, r"1 left over \(teacher\.weight\)$"),
        (
            {"text_projection.weight": torch.zeros(16, 31)},
            r"1 of another shape \(text_projection\.weight is \(16, 31\), expected \(16, 32\)\)$",
        ),
    ]
    for changes, message in expectations:
        weights = {name: tensor for name, tensor in {**whole, **changes}.items() if tensor is not None}
        safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelError) as caught:
            imported(folder)
        assert re.search(message, caught.value.message)


def test_a_pickle_of_code_among_weights_never_runs(make_folder, tmp_path, code_that_runs):
    _, folder = make_folder("clip")
    (folder / "model.safetensors").unlink()
    torch.save({"logit_scale": code_that_runs(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be opened: "):
        imported(folder)
    assert not (tmp_path / "ran").exists()


def test_code_beside_the_weights_never_runs(make_folder, tmp_path, texts):
    theirs, folder = make_folder("clip")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "code.Config", "AutoModel": "code.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    assert_same(imported(folder), theirs, texts)
    assert not (tmp_path / "ran").exists()
