"""The five systems in the sizes of their recipes, with nothing said but where tokenizer and vocabulary are."""

import copy
import json

import pytest
import tokenizers
import torch
from tokenizers import models, pre_tokenizers, processors

from cliplet.importing import Options, import_checkpoint
from cliplet.models import DualEncoder
from cliplet.recipes import RECIPES, recipe

pytestmark = pytest.mark.slow
WORDS = [f"w{number}" for number in range(9996)]


def bert(reference, width, layers, intermediate):
    config = reference.BertConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=12, intermediate_size=intermediate
    )
    return reference.BertModel(config)


def roberta(reference):
    return reference.roberta(50265, layers=12, width=768, positions=512, heads=12)


def dino(reference):
    return reference.vit(224, 16, layers=12, width=384, heads=6)


def system1(tower, *text):
    return lambda ref: ref.System1(tower, bert(ref, *text), dim=512)


MINILM = (384, 6, 1536)
SYSTEMS = {
    # recipe: system, the plain module
    "tinyvit-minilm-convffn": (1, system1("tiny_vit_11m_224", *MINILM)),
    "vits-minilm-convffn": (1, system1("vit_small_patch16_224", *MINILM)),
    "efficientnet-tinybert-convffn": (1, system1("efficientnet_b0", 312, 4, 1200)),
    "resnet34-linformer-sam": (
        2,
        lambda ref: ref.System2(ref.resnet([3, 4, 6, 3]), 512, 50257, dim=256, length=64, layers=4, heads=4, k=64),
    ),
    "vittiny-minilm": (3, lambda ref: ref.System3("vit_tiny_patch16_224", bert(ref, *MINILM), dim=256, hidden=256)),
    "vits-roberta-setup2": (4, lambda ref: ref.System4(dino(ref), roberta(ref), 384, dim=256)),
    "resnet101-roberta-setup2": (
        4,
        lambda ref: ref.System4(ref.resnet([3, 4, 23, 3], bottleneck=True), roberta(ref), 2048, dim=256),
    ),
    "vitb16-scratch-hardneg": (
        5,
        lambda ref: ref.System5(
            ref.vision_transformer(), 4 + len(WORDS), dim=256, width=512, layers=4, heads=8, length=32
        ),
    ),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_checkpoint_of_full_size_gives_its_features_without_a_word_on_its_shape(name, reference, tmp_path):
    system, make = SYSTEMS[name]
    torch.manual_seed(0)
    theirs = reference.perturb(make(reference))
    theirs.save(tmp_path / "checkpoint.pt")

    if system == 5:
        captions = [{"image": "x", "caption": " ".join(WORDS[at : at + 12])} for at in range(0, len(WORDS), 12)]
        (tmp_path / "captions.json").write_text(json.dumps(captions))
        options = Options(vocabulary=str(tmp_path / "captions.json"))
    else:
        rows = {1: 30522, 2: 50257, 3: 30522, 4: 50265}[system]
        vocabulary = {f"w{number}": number for number in range(4, rows)}
        vocabulary |= {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3} if system == 4 else {"[PAD]": 0, "[UNK]": 3}
        backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>" if system == 4 else "[UNK]"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        if system == 4:
            backend.post_processor = processors.BertProcessing(("</s>", 2), ("<s>", 0))
        backend.save(str(tmp_path / "tokenizer.json"))
        options = Options(tokenizer=str(tmp_path / "tokenizer.json"))

    model = import_checkpoint(tmp_path / "checkpoint.pt", system, options, print)
    assert_same(model, theirs, padding=system != 2)
    described = recipe(name).model
    assert model.config.image.name == described.image.name and model.config.embed_dim == described.embed_dim
    assert model.config.preprocess.image_size == 224
    assert model.config.text.context_length == described.text.context_length
    millions = RECIPES[name].parameters
    if system != 5:  # whose vocabulary is smaller here
        assert model.count_parameters() / 1e6 == pytest.approx(millions, abs=0.06)

    model.save_pretrained(tmp_path / "model")
    again = DualEncoder.from_pretrained(tmp_path / "model")
    assert_same(again, theirs, padding=system != 2)
    assert again.config == model.config


def assert_same(model, theirs, padding):
    """In double precision, for in single precision so many layers differ by their order of summing alone."""
    model, theirs = copy.deepcopy(model).double(), theirs.double()
    generator = torch.Generator().manual_seed(1)
    pixels = 2 * torch.nn.functional.interpolate(torch.randn(2, 3, 7, 7, generator=generator).double(), 224)
    texts = ["w7 w8 w9", "w4000 w5 w4000 nobody w6 " * 20]
    with torch.no_grad():
        image, theirs_image = model.encode_image(pixels), theirs.image(pixels)
        torch.testing.assert_close(image, theirs_image, rtol=0, atol=1e-9)
        assert torch.pdist(image).min() > 1e-2
        for batch in [texts] if padding else [[text] for text in texts]:
            ids, mask = map(torch.from_numpy, model.tokenizer(batch))
            text, theirs_text = model.encode_text(ids, mask), theirs.text(ids, mask)
            torch.testing.assert_close(text, theirs_text, rtol=0, atol=1e-9)
            scale = theirs.scale(theirs_image, theirs_text)
            torch.testing.assert_close(model.temperature(image, text), scale, rtol=1e-9, atol=0)
