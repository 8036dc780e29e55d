"""Any OpenCLIP model opens as an Encoder, and gives OpenCLIP's own features of the same pixels and tokens."""

import json
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch.nn import functional as F

import cliplet
from cliplet.errors import ModelError
from cliplet.models.open_clip_native import NativeOpenClip, open_for_features
from cliplet.runtime.preprocess import preprocess_image

open_clip = pytest.importorskip("open_clip")

VIT = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 16, "vocab_size": 64, "width": 32, "heads": 4, "layers": 1}
COCA = {**VIT, "attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True}


@pytest.fixture(scope="module")
def zoo(make_bert, tmp_path_factory):
    """Teaches open_clip some architectures that cliplet cannot express; `zoo(name)` is a file of weights of one."""
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("zoo")
    bert = make_bert(folder / "bert")
    special = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "bos": "[CLS]", "eos": "[SEP]"}
    PreTrainedTokenizerFast(
        tokenizer_file=str(bert / "tokenizer.json"), **{f"{name}_token": token for name, token in special.items()}
    ).save_pretrained(folder / "words")
    hugging_face = {"hf_model_name": str(bert), "hf_tokenizer_name": str(bert), "context_length": 16}
    described = {
        # As roberta-ViT-B-32.
        "base-bert": {
            "embed_dim": 24,
            "vision_cfg": VIT,
            "text_cfg": {**hugging_face, "hf_proj_type": "mlp", "hf_pooler_type": "mean_pooler"},
        },
        # A tokenizer with a mode of its own, and the last token of the padded context, as SigLIP's.
        "base-mode": {
            "embed_dim": 24,
            "init_logit_bias": -10,
            "custom_text": True,
            "vision_cfg": VIT,
            "text_cfg": {
                **TEXT,
                "tokenizer_mode": "clips",
                "hf_tokenizer_name": str(folder / "words"),
                "no_causal_mask": True,
                "pool_type": "last",
            },
        },
        # As coca_roberta-ViT-B-32, with two sides that OpenCLIP builds in one class of its own.
        "base-coca": {
            "embed_dim": 32,
            "custom_text": True,
            "vision_cfg": COCA,
            "text_cfg": {
                **TEXT,
                "embed_cls": True,
                "output_tokens": True,
                "tokenizer_mode": "clips",
                "hf_tokenizer_name": str(folder / "words"),
            },
            "multimodal_cfg": {**TEXT, "width": 32},
        },
        "base-wide": {
            "embed_dim": 24,
            "vision_cfg": {**VIT, "image_size": [32, 48]},
            "text_cfg": hugging_face,
        },
    }
    (folder / "architectures").mkdir()
    for name, what in described.items():
        (folder / "architectures" / f"{name}.json").write_text(json.dumps(what))
    open_clip.add_model_config(folder / "architectures")

    def weights(name):
        file = folder / f"{name}.safetensors"
        if not file.exists():
            torch.manual_seed(0)
            model = open_clip.create_model(name, pretrained_text=False)
            with torch.no_grad():  # nothing is zero or one, as after training
                for parameter in model.parameters():
                    parameter.add_(0.05 * torch.randn_like(parameter))
            safetensors.torch.save_file({key: value.contiguous() for key, value in model.state_dict().items()}, file)
        return file

    weights.folder = folder
    return weights


def pictures(count, size=(50, 40)):
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)) for _ in range(count)]


@pytest.mark.parametrize("name", ["base-bert", "base-mode", "base-coca"])
def test_an_encoder_gives_open_clips_own_features(name, zoo, captions):
    file = zoo(name)
    encoder = cliplet.load(f"open_clip:{name}/{file}")
    assert isinstance(encoder.engine.model, NativeOpenClip)
    theirs = open_clip.create_model(name, pretrained=str(file)).eval()
    pixels = np.stack([preprocess_image(picture, encoder.preprocess) for picture in pictures(3)])
    mean, std = torch.tensor([open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD])[..., None, None]
    captions = [*captions, "", "a child " * 40]
    with torch.no_grad():
        image_ND = F.normalize(theirs.encode_image((torch.tensor(pixels).permute(0, 3, 1, 2) / 255 - mean) / std))
        text_MD = F.normalize(theirs.encode_text(open_clip.get_tokenizer(name)(captions)))
    np.testing.assert_allclose(encoder.encode_image(pictures(3)), image_ND, atol=1e-5)
    np.testing.assert_allclose(encoder.encode_text(captions, batch_size=2), text_MD, atol=1e-5)
    assert torch.pdist(image_ND).min() > 1e-3 and torch.pdist(text_MD[:5]).min() > 1e-3
    assert encoder.embed_dim == theirs.visual.output_dim and encoder.preprocess.image_size == 32
    assert encoder.source == f"open_clip:{name}/{file}"


def test_an_encoder_takes_half_a_character_and_no_texts(zoo):
    encoder = cliplet.load(f"open_clip:base-bert/{zoo('base-bert')}")
    np.testing.assert_array_equal(encoder.encode_text(["a boat \ud83d"]), encoder.encode_text(["a boat ?"]))
    assert encoder.encode_text([]).shape == (0, 24)


def test_what_cliplet_can_express_stays_its_own(saved_model):
    assert not isinstance(open_for_features(saved_model), NativeOpenClip)


# -- what cannot be opened


def test_pictures_that_are_no_squares_are_refused_before_anything_is_fetched(zoo):
    with pytest.raises(ModelError, match="32 x 48 pixels; cliplet's are square"):
        cliplet.load("open_clip:base-wide/no-file-is-looked-for")


def test_names_that_are_not_there_are_told_with_near_ones(zoo, tmp_path):
    with pytest.raises(ModelError, match="no OpenCLIP architecture 'base-brt'") as caught:
        cliplet.load("open_clip:base-brt/x")
    assert "base-bert" in caught.value.hint
    with pytest.raises(ModelError, match="roberta-ViT-B-32/laion2b_s12b_b32: no such pretrained weights") as caught:
        cliplet.load("open_clip:roberta-ViT-B-32/laion2b_s12b_b32")
    assert "laion2b_s12b_b32k" in caught.value.hint
    with pytest.raises(ModelError, match="base-bert/openai: no such pretrained weights"):
        cliplet.load("open_clip:base-bert/openai")
    with pytest.raises(ModelError, match="no such file"):
        cliplet.load(f"open_clip:base-bert/{tmp_path / 'gone.safetensors'}")


def test_without_a_network_a_tag_says_what_to_do_instead():
    with pytest.raises(ModelError, match="hub cannot be reached") as caught:
        cliplet.load("open_clip:roberta-ViT-B-32/laion2b_s12b_b32k")
    assert "open_clip:roberta-ViT-B-32/path/to/weights.safetensors" in caught.value.hint


def test_cut_weights_are_refused(zoo, tmp_path):
    file = tmp_path / "cut.safetensors"
    file.write_bytes(zoo("base-bert").read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot be opened as weights"):
        cliplet.load(f"open_clip:base-bert/{file}")


def test_a_text_side_whose_configuration_is_gone_is_named(zoo, tmp_path):
    file = zoo("base-bert")
    shutil.move(zoo.folder / "bert", tmp_path / "bert")
    try:
        with pytest.raises(ModelError, match="cannot build base-bert") as caught:
            cliplet.load(f"open_clip:base-bert/{file}")
        assert "hub's cache" in caught.value.hint
    finally:
        shutil.move(tmp_path / "bert", zoo.folder / "bert")
