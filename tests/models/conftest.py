"""Small OpenCLIP architectures, known to open_clip by name, with weights in local files."""

import json

import pytest

VIT = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 3}
HF_TEXT = {**TEXT, "vocab_size": 64}

# name -> description; "BERT" and "SENTENCES" stand for the folders of tokenizers.
ARCHITECTURES = {
    "tiny-vit": {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT},
    "tiny-gelu": {
        "embed_dim": 24,
        "quick_gelu": True,
        "custom_text": True,
        "vision_cfg": {**VIT, "no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
        "text_cfg": {**TEXT, "proj_bias": True},
    },
    "tiny-rn": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 64, "layers": [1, 2, 1, 1], "width": 8, "patch_size": None},
        "text_cfg": TEXT,
    },
    # As MobileCLIP: timm's picture side with a classifier for projection, tokens that look both ways.
    "tiny-mobile": {
        "embed_dim": 24,
        "custom_text": True,
        "vision_cfg": {"timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": None, "image_size": 64},
        "text_cfg": {**TEXT, "no_causal_mask": True},
    },
    # As EVA's: a timm transformer with a norm after pooling.
    "tiny-timm": {
        "embed_dim": 24,
        "vision_cfg": {"timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": None, "image_size": 160},
        "text_cfg": TEXT,
    },
    # As SigLIP: a bias, attention pooling, the last token of the whole context.
    "tiny-sig": {
        "embed_dim": 64,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {"timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none", "image_size": 160},
        "text_cfg": {
            **HF_TEXT,
            "hf_tokenizer_name": "SENTENCES",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
        },
    },
    # As CLIPA: the last token, with the separator stripped.
    "tiny-clipa": {
        "embed_dim": 24,
        "vision_cfg": VIT,
        "text_cfg": {
            **HF_TEXT,
            "hf_tokenizer_name": "BERT",
            "tokenizer_kwargs": {"strip_sep_token": True},
            "no_causal_mask": True,
            "pool_type": "last",
        },
    },
    # As MetaCLIP 2: the token of a given id.
    "tiny-eos": {
        "embed_dim": 24,
        "vision_cfg": VIT,
        "text_cfg": {**HF_TEXT, "hf_tokenizer_name": "SENTENCES", "pool_type": "eos", "eos_id": 1},
    },
    "tiny-coca": {
        "embed_dim": 24,
        "custom_text": True,
        "vision_cfg": {**VIT, "attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True},
        "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": TEXT,
    },
}


@pytest.fixture(scope="session")
def open_clip_zoo(tmp_path_factory, captions):
    """Teaches open_clip the architectures above, and gives a function that writes weights of one.

    `write(name, folder)` -> weights.safetensors of random weights; each call writes the same.
    """
    open_clip = pytest.importorskip("open_clip")
    import safetensors.torch
    import torch

    folder = tmp_path_factory.mktemp("open_clip")
    _write_tokenizers(folder, captions)
    (folder / "architectures").mkdir()
    for name, described in ARCHITECTURES.items():
        text = json.dumps(described).replace('"BERT"', json.dumps(str(folder / "bert")))
        text = text.replace('"SENTENCES"', json.dumps(str(folder / "sentences")))
        (folder / "architectures" / f"{name}.json").write_text(text)
    open_clip.add_model_config(folder / "architectures")

    def write(name, place):
        torch.manual_seed(0)
        model = open_clip.create_model(name)
        with torch.no_grad():  # nothing is zero or one, as after training
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
            if any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules()):
                for _ in range(20):
                    model.train().encode_image(torch.randn(8, 3, 64, 64))
        weights = {key: value.contiguous() for key, value in model.state_dict().items()}
        weights["logit_scale"].fill_(3.9)
        if "logit_bias" in weights:
            weights["logit_bias"].fill_(-7.5)
        file = place / "weights.safetensors"
        safetensors.torch.save_file(weights, file)
        return file

    return write


def _write_tokenizers(folder, captions):
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = sorted({word for caption in captions for word in caption.split()})
    backend = tokenizers.Tokenizer(
        models.WordPiece({w: n for n, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}, unk_token="[UNK]")
    )
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder / "bert")

    # As sentencepiece's: a mark before each word, pieces by their scores, padded with the closing token.
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(f"▁{word}", -3.0) for word in words] + [(letter, -9.0) for letter in "abcdefghijklmnop"]
    backend = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=2))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    backend.add_tokens(["\n\n", "<b>"])  # as Gemma's has them
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder / "sentences")
