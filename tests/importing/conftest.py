"""Checkpoints of the five systems, small and with random weights, and what the plain modules in them say."""

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from tokenizers import models, pre_tokenizers, processors

WORDS = ["a", "an", "ball", "blue", "boat", "child", "deep", "dogs", "in", "lake"]
WORDS += ["man", "old", "on", "reads", "red", "run", "snow", "the", "two", "with"]
TEXTS = [
    "a red boat",
    "two dogs run in the deep snow with a blue ball",
    "an old man reads on the lake",
    "Two zebras run",  # a capital, an unknown word
]


def _module(name):
    spec = importlib.util.spec_from_file_location(f"importing_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


ref = _module("reference")


@pytest.fixture(scope="session")
def reference():
    """The module of the plain implementations."""
    return ref


@pytest.fixture(scope="session")
def texts():
    return list(TEXTS)


# Tokenizers


def bert_tokenizer(file):
    """Words, [CLS] and [SEP] around them."""
    vocabulary = {token: number for number, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.save(str(file))
    return len(vocabulary)


def roberta_tokenizer(file):
    """Words, <s> and </s> around them; padding is number 1, from which positions are counted."""
    vocabulary = {token: number for number, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *WORDS])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.BertProcessing(("</s>", 2), ("<s>", 0))
    backend.save(str(file))
    return len(vocabulary)


def gpt_tokenizer(file):
    """Bytes with nothing around them, and an end of text that pads."""
    entries = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(entries)}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.save(str(file))
    return len(vocabulary)


def clip_tokenizer(file):
    """Words, <|startoftext|> and <|endoftext|> around them; the last pads, too, as it does in CLIP."""
    vocabulary = {token: number for number, token in enumerate([*WORDS, "<unk>", "<|startoftext|>", "<|endoftext|>"])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    start, end = ((token, vocabulary[token]) for token in ("<|startoftext|>", "<|endoftext|>"))
    backend.post_processor = processors.BertProcessing(end, start)
    backend.save(str(file))
    return len(vocabulary)


TOKENIZERS = {"bert": bert_tokenizer, "roberta": roberta_tokenizer, "gpt": gpt_tokenizer, "clip": clip_tokenizer}


@pytest.fixture(scope="session")
def write_tokenizer():
    """Writes the tokenizer.json of a kind of model; returns how many entries it has."""

    def write(kind, file):
        return TOKENIZERS[kind](file)

    return write


# Checkpoints


@dataclass(frozen=True)
class Example:
    """A checkpoint, the module that it was saved from, and how it is imported."""

    system: int
    model: Any
    file: Path
    options: dict[str, str]
    image_size: int = 224
    padding: bool = True  # whether the module takes texts of different lengths at once

    def content(self) -> dict[str, Any]:
        """What the file holds, but for the optimizer's state; to be changed."""
        return {key: dict(value) if isinstance(value, dict) else value for key, value in self.model.content().items()}

    @property
    def words(self) -> list[str]:
        """The options as they stand on a command line."""
        flags = (("--" + name.replace("_", "-"), value) for name, value in self.options.items())
        return ["--system", str(self.system), *(word for pair in flags for word in pair)]


def _config(folder, model):
    file = folder / f"{model.config.model_type}.json"
    model.config.to_json_file(file)
    return str(file)


def _tokenizer(folder, kind):
    file = folder / f"{kind}_tokenizer.json"
    return str(file), TOKENIZERS[kind](file)


def _example(folder, system, model, options, **more):
    model = ref.perturb(model, seed=system)
    return Example(system, model, model.save(folder / "checkpoint.pt"), options, **more)


def convffn(folder, tower="test_efficientnet", width=32, named=True, **head):
    tokenizer, rows = _tokenizer(folder, "bert")
    text = ref.bert(rows, width=width, heads=4 if named else 12, layers=2 if named else 1)
    options = {"tokenizer": tokenizer, "image_tower": tower}
    if named:
        options["text_config"] = _config(folder, text)
    return _example(folder, 1, ref.System1(tower, text, **head), options)


def _resnet(name):
    """A small one of timm's, or torchvision's own, and its width. The names of their tensors are the same."""
    return (ref.timm_model(name), 96) if name == "test_resnet" else (ref.resnet([2, 2, 2, 2]), 512)


def miniclip(folder, tower="test_resnet", **text):
    tokenizer, rows = _tokenizer(folder, "gpt")
    model = ref.System2(*_resnet(tower), rows, **text)
    return _example(folder, 2, model, {"tokenizer": tokenizer, "image_tower": tower}, padding=False)


def tinymvlm(folder, tower, **options):
    tokenizer, rows = _tokenizer(folder, "bert")
    text = ref.bert(rows)
    model = ref.System3(tower, text, **options)
    return _example(
        folder, 3, model, {"tokenizer": tokenizer, "image_tower": tower, "text_config": _config(folder, text)}
    )


def miniclip_dl(folder, width=64, heads=4, tower="", text_named=True, **head):
    tokenizer, rows = _tokenizer(folder, "roberta")
    text = ref.roberta(rows) if text_named else ref.roberta(rows, layers=1, width=768, heads=12)
    options = {"tokenizer": tokenizer}
    if text_named:
        options["text_config"] = _config(folder, text)
    if tower:
        options["image_tower"] = tower
        image, width = _resnet(tower)
        return _example(folder, 4, ref.System4(image, text, width, **head), options)
    image = ref.vit(width=width, heads=heads)
    if heads != width // 64:
        options["image_config"] = _config(folder, image)
    return _example(folder, 4, ref.System4(image, text, width, **head), options, image_size=32)


def scratch(folder, **text):
    captions = folder / "captions.json"
    entries = [{"image": f"{number}.jpg", "caption": text} for number, text in enumerate(CAPTIONS_OF_5)]
    captions.write_text(json.dumps(entries))
    image = ref.vision_transformer(layers=6, width=64, heads=2, hidden=192)  # test_vit's
    model = ref.System5(image, len(ref.vocabulary_of(CAPTIONS_OF_5)), width=128, heads=2, **text)
    return _example(folder, 5, model, {"vocabulary": str(captions), "image_tower": "test_vit"})


CAPTIONS_OF_5 = [
    "A red boat on the Lake .",
    "zoo: two dogs run",
    "in deep snow a child, 3 years old",
    "éclair BALL ? !",
]

EXAMPLES: dict[str, Callable[..., Example]] = {
    "1": convffn,
    "1 vit, other head": lambda folder: convffn(folder, "test_vit", mult=3, kernel=5, dim=12),
    "1 width as in the recipe": lambda folder: convffn(folder, width=384, named=False),
    "2": miniclip,
    "2 own keys and values": lambda folder: miniclip(folder, shared=False, length=20, layers=1),
    "2 torchvision": lambda folder: miniclip(folder, "resnet18"),
    "3": lambda folder: tinymvlm(folder, "test_vit"),
    "3 convolutions": lambda folder: tinymvlm(folder, "test_efficientnet", hidden=16),
    "4": miniclip_dl,
    "4 heads of 64": lambda folder: miniclip_dl(folder, width=128, heads=2, text_named=False),
    "4 resnet": lambda folder: miniclip_dl(folder, tower="test_resnet"),
    "4 older": lambda folder: miniclip_dl(folder, plain=True),
    "5": scratch,
    "5 three layers": lambda folder: scratch(folder, layers=3, length=13, dim=12),
}


@pytest.fixture(scope="session")
def make_example(tmp_path_factory):
    """The example of that name; made once, its file to be read only."""
    made = {}

    def make(name):
        if name not in made:
            torch.manual_seed(0)
            made[name] = EXAMPLES[name](tmp_path_factory.mktemp("checkpoint"))
        return made[name]

    return make


@pytest.fixture(params=EXAMPLES)
def example(request, make_example):
    """Each of the examples."""
    return make_example(request.param)


@pytest.fixture(params=[1, 2, 3, 4, 5])
def plain_example(request, make_example):
    """The first example of each system."""
    return make_example(str(request.param))


@pytest.fixture(scope="session")
def opened():
    """The model of an example: of its file, or of a file with another content."""
    from cliplet.importing import Options, import_checkpoint

    def open_(example, file=None, **options):
        return import_checkpoint(
            file or example.file, example.system, Options(**{**example.options, **options}), lambda _: None
        )

    return open_


@pytest.fixture(scope="session")
def assert_same_features():
    """Holds a cliplet model against plain features, to 1e-5, and their scale."""

    def check(model, example):
        generator = torch.Generator().manual_seed(1)
        blots = torch.randn(3, 3, 4, 4, generator=generator)  # of plain noise all pictures look alike
        pixels = 2 * torch.nn.functional.interpolate(blots, example.image_size)
        assert not model.training
        with torch.no_grad():
            image, theirs_image = model.encode_image(pixels), example.model.image(pixels)
            rows, theirs_rows = [], []
            for batch in [TEXTS] if example.padding else [[text] for text in TEXTS]:
                ids, mask = map(torch.from_numpy, model.tokenizer(batch))
                rows.append(model.encode_text(ids, mask))
                theirs_rows.append(example.model.text(ids, mask))
            text, theirs_text = torch.cat(rows), torch.cat(theirs_rows)
            scale, theirs_scale = model.temperature(image, text), example.model.scale(theirs_image, theirs_text)
        for ours, theirs in ((image, theirs_image), (text, theirs_text)):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
            assert torch.pdist(theirs).min() > 1e-2  # or equal features would say little
        torch.testing.assert_close(scale, theirs_scale, rtol=1e-5, atol=0)
        assert scale.ndim == 0

    return check


class _Code:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


@pytest.fixture
def code_that_runs():
    """An object whose unpickling makes a folder."""
    return _Code
