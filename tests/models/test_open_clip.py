"""OpenCLIP's towers and tokenizers: named, described, by depth. Their features are held to OpenCLIP's in
test_pretrained.py."""

import json
import os
import sys

import pytest
import torch

from cliplet.config import HeadConfig, ImageTowerConfig, ModelConfig, TextTowerConfig
from cliplet.errors import ModelError
from cliplet.models import DualEncoder
from cliplet.models.open_clip import OpenClipImageTower, OpenClipTextTower, clip_tokenizer
from cliplet.models.open_clip_tokenizers import library

open_clip = pytest.importorskip("open_clip")


def image_tower(name, size, **settings):
    return OpenClipImageTower.from_name(ImageTowerConfig(kind="open_clip", name=name, **settings), size)


def text_tower(name, length=16, **settings):
    config = TextTowerConfig(kind="open_clip", name=name, context_length=length, **settings)
    return OpenClipTextTower.from_name(config)


# -- CLIP's tokenizer

HARD = [
    "",
    " ",
    "a",
    "A dog. A DOG! a dog?",
    "it's we're I'LL DON'T they'd I've I'm 'quoted'",
    "the dog\u2019s \u201cred\u201d ball \u2014 and \u2018more\u2019",
    "café, Café, CAFE\u0301 and naïve coöperation; Ærø, ſtraße",
    "12,500.75 m² in 1999-2024, 3rd & 4th; ½ of №5",
    "two  spaces\tand\ttabs\n\nand lines \r\n  ",
    "\u00a0no break\u3000wide\u2028line",
    "emoji 😀👩\u200d👩\u200d👧 and flags 🇩🇪!!",
    "#hashtag @someone http://a.b/c?d=e&f=g user_name __init__ --- ;;",
    "東京の夜 と мальчик бежит и كلب",
    "supercalifragilisticexpialidocious " * 3,
    "<end_of_text> in a <START_OF_TEXT>caption<end_of_text>",
    "\ufeffbyte order mark\x00 and \x07 bells\x1c",
    "a very long text, " * 100,
    "x" * 1000,
    "'" * 90 + "9" * 90,
    "$%^*()[]{}|\\~`+=/",
]
SUBJECTS = ["A red boat", "two dogs", "the Café's owner", "Anna-Maria", "an old man", "3 boys", "someone’s cat", "NASA"]
ENDS = [
    "runs through deep snow.",
    "on the lake, at 7:30pm",
    'says "hello" & waves',
    "isn't here!",
    "",
    "IN THE PARK",
    "lies on a bench…",
    "über die Straße",
    "🙂 smiles",
    "(see p. 12)",
    "with £20 / 50%",
    "under a tree-house near O'Hare",
    "dans l'été à Orléans",
    "wearing T-shirts #2 and #3",
    "who’d rather not",
    "- a still life; oil on canvas",
    "with umbrella\nand hat",
    "   far away   ",
    "in front of McDonald's",
    "1,000,000 times",
    "a_b_c",
    "ñandú",
    "at the end of the pier where nobody ever goes " * 3,
]


@pytest.mark.parametrize("context_length", [77, 16])
def test_clip_tokens_are_open_clips_own(context_length):
    texts = HARD + [f"{subject} {end}" for subject in SUBJECTS for end in ENDS]
    assert len(set(texts)) >= 200
    expected = open_clip.get_tokenizer("ViT-B-32", context_length=context_length)(texts)
    ids, mask = (torch.from_numpy(array) for array in clip_tokenizer(context_length)(texts))
    assert ids.shape[1] == context_length  # some of them are cut
    wrong = [text for text, a, b in zip(texts, ids * mask, expected, strict=True) if not torch.equal(a, b)]
    assert wrong == []
    assert (ids[mask.bool()] == 49407).sum() >= len(texts)


def test_the_tokenizer_saved_is_the_tokenizer_itself(tmp_path):
    tokenizer = clip_tokenizer(16)
    tokenizer.save(tmp_path / "tokenizer.json")
    again = type(tokenizer).from_file(tmp_path / "tokenizer.json", 16)
    for ours, theirs in zip(tokenizer(HARD), again(HARD), strict=True):
        assert (ours == theirs).all()
    assert tokenizer.vocab_size == 49408


def test_what_cannot_be_expressed_is_only_what_the_docstring_says():
    """Should one of these become equal, the docstring promises too little."""
    texts = ["salt &amp; pepper", "the ﬁrst", "ΣΑΣ", "ＦＵＬＬ width"]
    expected = open_clip.get_tokenizer("ViT-B-32")(texts)
    for row, text in enumerate(texts):
        ids = torch.from_numpy(clip_tokenizer(77)([text])[0])[0]
        assert not torch.equal(ids, expected[row, : len(ids)]), text


# -- tokenizers of Hugging Face's


@pytest.mark.parametrize("name", ["tiny-sig", "tiny-clipa", "tiny-eos"])
def test_a_converted_tokenizer_cleans_and_pads_as_open_clip(name, open_clip_zoo):
    texts = [
        *HARD,
        "a red boat",
        "A Red_boat,  ON the\n\nlake!",
        "[SEP] boat [SEP] dogs",
        "two\n\ndogs",
        "<pad> [PAD] boat",
    ]
    if name == "tiny-sig":  # its cleaning leaves nothing of them
        texts += ["</s> a </s>", "<b>boat</b>"]
    tower, tokenizer = text_tower(name)
    seen = []
    tower.model.forward = lambda ids: seen.append(ids) or torch.zeros(len(ids), 1)
    tower.looks_back = False  # so that the model is given whole rows
    tower(*(torch.from_numpy(array) for array in tokenizer(texts)))
    expected = open_clip.get_tokenizer(name)(texts)
    wrong = [text for text, a, b in zip(texts, seen[0], expected, strict=True) if not torch.equal(a, b)]
    assert wrong == []


def redescribed(monkeypatch, source, name, **text):
    described = open_clip.get_model_config(source)
    described["text_cfg"] |= text
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, described)


def test_tokenizers_that_are_not_supported_are_named(open_clip_zoo, monkeypatch, tmp_path):
    redescribed(monkeypatch, "tiny-vit", "tiny-SigLIP-x")
    with pytest.raises(ModelError, match=r"sentencepiece file \(SigLipTokenizer\), which is not supported"):
        text_tower("tiny-SigLIP-x")
    redescribed(monkeypatch, "tiny-clipa", "mode", tokenizer_mode="clips")
    with pytest.raises(ModelError, match="tokenizer mode 'clips' is not supported"):
        text_tower("mode")
    redescribed(monkeypatch, "tiny-vit", "options", tokenizer_kwargs={"reduction_mask": "random"})
    with pytest.raises(ModelError, match="not supported: reduction_mask"):
        text_tower("options")
    redescribed(monkeypatch, "tiny-clipa", "odd", tokenizer_kwargs={"clean": "spotless"})
    with pytest.raises(ModelError, match="could not be loaded"):
        text_tower("odd")


def test_a_tokenizer_that_differs_is_refused(open_clip_zoo, monkeypatch):
    redescribed(monkeypatch, "tiny-clipa", "left", tokenizer_kwargs={"truncation_side": "left"})
    with pytest.raises(ModelError, match=r"does what a tokenizer\.json cannot express"):
        text_tower("left")


def test_a_tokenizer_of_more_entries_than_embeddings_is_refused(open_clip_zoo, monkeypatch):
    redescribed(monkeypatch, "tiny-vit", "few", vocab_size=1000)
    with pytest.raises(ModelError, match="49,408 entries, but the tower 1,000 embeddings"):
        text_tower("few")


# -- towers


def names_of(tower):
    name_of = {id(parameter): name for name, parameter in tower.named_parameters()}
    blocks = [[name_of[id(parameter)] for parameter in block] for block in tower.blocks()]
    assert sorted(name for block in blocks for name in block) == sorted(name_of.values())
    return blocks


@pytest.mark.parametrize(
    ("name", "size", "number", "first", "last"),
    [
        ("tiny-vit", 32, 3, "model.conv1.weight", ["model.ln_post.weight", "model.proj"]),
        ("tiny-rn", 64, 5, "model.bn3.weight", ["model.layer4.0.conv1.weight", "model.attnpool.c_proj.weight"]),
        (
            "tiny-mobile",
            64,
            5,
            "model.trunk.conv1.0.weight",
            ["model.trunk.layer4.0.conv1.weight", "model.trunk.fc.weight"],
        ),
        ("tiny-timm", 160, 7, "model.trunk.cls_token", ["model.trunk.fc_norm.weight", "model.trunk.head.weight"]),
        ("tiny-sig", 160, 8, "model.trunk.pos_embed", ["model.trunk.attn_pool.kv.weight"]),
        ("tiny-coca", 32, 3, "model.class_embedding", ["model.ln_post.weight", "model.attn_pool.query", "model.proj"]),
    ],
)
def test_blocks_of_pictures_cover_every_parameter_once_from_input_to_output(
    name, size, number, first, last, open_clip_zoo
):
    blocks = names_of(image_tower(name, size))
    assert len(blocks) == number
    assert first in blocks[0]
    assert set(last) <= set(blocks[-1])
    assert not any("proj" in parameter.split(".")[1] for block in blocks[:-1] for parameter in block)


@pytest.mark.parametrize(("name", "number"), [("tiny-vit", 4), ("tiny-gelu", 4), ("tiny-coca", 4)])
def test_blocks_of_texts_cover_every_parameter_once_from_input_to_output(name, number, open_clip_zoo):
    blocks = names_of(text_tower(name)[0])
    assert len(blocks) == number
    assert {"model.token_embedding.weight", "model.positional_embedding"} <= set(blocks[0])
    assert all("embedding" in parameter or "cls_emb" in parameter for parameter in blocks[0])
    assert all(parameter.startswith("model.transformer.resblocks.0.") for parameter in blocks[1])
    after = {parameter for parameter in blocks[-1] if ".resblocks." not in parameter}
    assert "model.ln_final.weight" in after and any("text_projection" in parameter for parameter in after)


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-rn", "tiny-mobile", "tiny-sig", "tiny-coca"])
def test_architecture_is_plain_data_and_builds_the_same_shapes(name, open_clip_zoo):
    size = open_clip.get_model_config(name)["vision_cfg"]["image_size"]
    image, (text, _) = image_tower(name, size), text_tower(name)
    again = (
        OpenClipImageTower(image.config, size, json.loads(json.dumps(image.architecture))),
        OpenClipTextTower(text.config, json.loads(json.dumps(text.architecture))),
    )
    for tower, twin in zip((image, text), again, strict=True):
        shapes = {key: value.shape for key, value in tower.state_dict().items()}
        assert {key: value.shape for key, value in twin.state_dict().items()} == shapes
        assert twin.width == tower.width == open_clip.get_model_config(name)["embed_dim"]


def test_batch_norm_statistics_stay_unless_they_are_to_move(open_clip_zoo):
    for setting in (False, True):
        tower = image_tower("tiny-rn", 64, train_batch_norm=setting).train()
        before = tower.model.bn1.running_mean.clone()
        tower(torch.randn(4, 3, 64, 64))
        assert torch.equal(before, tower.model.bn1.running_mean) != setting


def test_a_text_that_looks_back_costs_what_it_is_long(open_clip_zoo):
    for name, length in (("tiny-vit", 5), ("tiny-mobile", 16)):
        tower, _ = text_tower(name)
        seen = []
        tower.model.transformer.register_forward_pre_hook(
            lambda _, arguments, seen=seen: seen.append(arguments[0].shape)
        )
        tower(torch.ones(2, 5, dtype=torch.int64), torch.ones(2, 5, dtype=torch.int64))
        assert seen == [(2, length, 32)]


def test_a_tower_of_open_clips_own_is_built_for_sizes_that_fit(open_clip_zoo):
    tower = image_tower("tiny-vit", 48)
    assert tower(torch.zeros(2, 3, 48, 48)).shape == (2, 24)
    assert OpenClipImageTower(tower.config, 48, tower.architecture).width == 24
    assert image_tower("tiny-rn", 96)(torch.zeros(1, 3, 96, 96)).shape == (1, 24)
    for name, size, takes in (("tiny-vit", 50, 32), ("tiny-rn", 100, 64), ("tiny-sig", 176, 160)):
        with pytest.raises(ModelError, match=f"{name}: takes pictures of {takes} pixels, not of {size}") as caught:
            image_tower(name, size)
        assert f"image_size to {takes}" in caught.value.hint


def test_what_a_configuration_cannot_ask_for_is_told(open_clip_zoo, monkeypatch):
    with pytest.raises(ModelError, match="no OpenCLIP architecture 'ViT-B-31'") as caught:
        image_tower("ViT-B-31", 224)
    assert "ViT-B-32" in caught.value.hint
    with pytest.raises(ModelError, match="no OpenCLIP architecture 'ViT-B-31'"):
        text_tower("ViT-B-31")
    with pytest.raises(ModelError, match=r"reads texts of 16 tokens, but model\.text\.context_length is 32") as caught:
        text_tower("tiny-vit", 32)
    assert "context_length to 16" in caught.value.hint
    with pytest.raises(ModelError, match=r"take no model\.image\.weights"):
        image_tower("tiny-vit", 32, weights=("hub",))
    with pytest.raises(ModelError, match=r"take no model\.text\.sources"):
        text_tower("tiny-vit", sources=("somewhere",))
    with pytest.raises(ModelError, match="Hugging Face model roberta-base inside OpenCLIP"):
        text_tower("roberta-ViT-B-32", 77)
    redescribed(monkeypatch, "tiny-mobile", "all-states", pool_type="none")
    with pytest.raises(ModelError, match="more than one vector"):
        text_tower("all-states")
    described = open_clip.get_model_config("tiny-vit")
    described["vision_cfg"]["image_size"] = [32, 64]
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "wide", described)
    with pytest.raises(ModelError, match="takes pictures of 32 x 64 pixels"):
        image_tower("wide", 32)


@pytest.mark.parametrize("damage", [{"layers": "many"}, {"no_such_key": 1}, {"timm_model_name": "no_such_model"}])
def test_a_damaged_architecture_is_an_error(damage, open_clip_zoo):
    tower = image_tower("tiny-vit", 32)
    architecture = {**tower.architecture, "vision_cfg": {**tower.architecture["vision_cfg"], **damage}}
    with pytest.raises(ModelError, match="OpenCLIP cannot build the vision side of tiny-vit"):
        OpenClipImageTower(tower.config, 32, architecture)
    with pytest.raises(ModelError, match="OpenCLIP cannot build the text side of tiny-vit"):
        OpenClipTextTower(TextTowerConfig(kind="open_clip", name="tiny-vit", context_length=77), {"text_cfg": {}})


def test_without_the_package_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    for build in (lambda: image_tower("ViT-B-32", 224), lambda: text_tower("ViT-B-32", 77), lambda: clip_tokenizer(77)):
        with pytest.raises(ModelError, match="needs the package open_clip_torch") as caught:
            build()
        assert caught.value.hint == "pip install open_clip_torch"


@pytest.mark.parametrize("before", [None, "true"])
def test_its_import_leaves_tokenizers_their_threads(before, monkeypatch, tmp_path):
    assert open_clip.tokenizer  # the real one sets this variable when it is imported, as does the one made here
    (tmp_path / "open_clip.py").write_text("import os\nos.environ['TOKENIZERS_PARALLELISM'] = 'false'\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "open_clip")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", before or "")
    if before is None:
        monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    assert library("a test").__file__ == str(tmp_path / "open_clip.py")
    assert os.environ.get("TOKENIZERS_PARALLELISM") == before


def test_a_large_architecture_is_built_by_name():
    none = HeadConfig(kind="none")
    model = DualEncoder.build(
        ModelConfig(
            embed_dim=512,
            image=ImageTowerConfig(kind="open_clip", name="ViT-B-32"),
            text=TextTowerConfig(kind="open_clip", name="ViT-B-32", context_length=77),
            image_head=none,
            text_head=none,
        )
    )
    assert len(model.image_tower.blocks()) == len(model.text_tower.blocks()) == 13
    assert model.count_parameters() == 151_277_313  # OpenCLIP's own number
    ids, mask = (torch.from_numpy(array) for array in model.tokenizer(["a red boat", "two dogs in the snow"]))
    with torch.no_grad():
        assert model.encode_text(ids, mask).shape == (2, 512)
