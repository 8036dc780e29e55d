"""Small models, made from scratch, and a small data set. No test uses a network."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported
# Models this small gain nothing by a second thread, which waits for the first one wherever the machine is busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Training would make malloc keep memory for the rest of the process, and tests that measure memory run in the same one.
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", "131072")

# What engines are found to be is remembered for this run of the tests alone.
os.environ["CLIPLET_CACHE"] = tempfile.mkdtemp(prefix="cliplet-tests-")

import numpy as np
import pytest
from PIL import Image

from cliplet.config import ImageTowerConfig, ModelConfig, PreprocessConfig, TextTowerConfig, TokenizerConfig

CAPTIONS = [
    "a red boat on the lake",
    "two dogs run in the deep snow",
    "a child with a blue ball",
    "an old man reads a newspaper on a bench in the park while it rains",
    "boat",
]


@pytest.fixture(scope="session")
def captions():
    return list(CAPTIONS)


@pytest.fixture(scope="session")
def tiny_config():
    """A model of 0.4 M parameters: test_resnet at 32 pixels, a transformer of width 32."""
    return ModelConfig(
        embed_dim=16,
        image=ImageTowerConfig(name="test_resnet"),
        text=TextTowerConfig(width=32, layers=2, heads=4, context_length=24, tokenizer=TokenizerConfig(vocab_size=300)),
        preprocess=PreprocessConfig(image_size=32),
    )


@pytest.fixture
def tiny_model(tiny_config):
    """A new model, in evaluation mode, the same each time."""
    return _tiny(tiny_config)


@pytest.fixture(scope="session")
def saved_model(tiny_config, tmp_path_factory):
    """A model folder; to be read only."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    _tiny(tiny_config).save_pretrained(folder, card="# card\n")
    return folder


@pytest.fixture(scope="session")
def exported_model(saved_model, tmp_path_factory):
    """A model folder with weights and exported graphs in float32; to be read only."""
    from cliplet.export import export

    folder = tmp_path_factory.mktemp("exported") / "model"
    shutil.copytree(saved_model, folder)
    export(folder)
    return folder


@pytest.fixture(scope="module")
def traced_once(exported_model):
    """Exports of the tiny model take the graphs of `exported_model`: tracing is nearly all of their time, and what uses
    this is about what comes after it."""
    import importlib

    import onnx

    from cliplet.runtime.exported import TOWERS

    run = importlib.import_module("cliplet.export.run")  # the package has a function of the same name
    weights = (exported_model / "model.safetensors").read_bytes()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:

        def graphs(model):
            model.save_pretrained(Path(folder) / "traced", card="# card\n")
            assert (Path(folder) / "traced" / "model.safetensors").read_bytes() == weights
            return {tower: onnx.load(exported_model / "onnx" / f"{tower}.onnx") for tower in TOWERS}

        patch.setattr(run, "export_graphs", graphs)
        yield


@pytest.fixture
def exported_copy(exported_model, tmp_path):
    """The same, for a test that damages it."""
    return Path(shutil.copytree(exported_model, tmp_path / "exported"))


@pytest.fixture
def model_copy(saved_model, tmp_path):
    """A model folder that a test may damage."""
    return Path(shutil.copytree(saved_model, tmp_path / "copy"))


def _tiny(config):
    import torch

    from cliplet.models import DualEncoder

    torch.manual_seed(0)
    return DualEncoder.build(config, CAPTIONS).eval()


@pytest.fixture(scope="session")
def make_bert():
    """Writes a tiny BERT with its tokenizer.json into a folder, as transformers would."""

    def make(folder, layers=2, width=32, positions=24):
        import tokenizers
        import torch
        from transformers import BertConfig, BertModel

        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
        words = sorted({word for caption in CAPTIONS for word in caption.split()})
        vocabulary = {token: number for number, token in enumerate([*special, *words])}
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            intermediate_size=2 * width,
            max_position_embeddings=positions,
        )
        BertModel(config).save_pretrained(folder)
        backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
        backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        backend.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        backend.save(str(Path(folder) / "tokenizer.json"))
        return Path(folder)

    return make


@pytest.fixture
def bert_model(make_bert, tiny_config, tmp_path):
    """A dual encoder with a tiny BERT as its text tower; the BERT's own folder is gone."""
    import torch

    from cliplet.models import DualEncoder

    source = make_bert(tmp_path / "bert")
    text = TextTowerConfig(kind="huggingface", sources=(str(source),), context_length=24)
    torch.manual_seed(0)
    model = DualEncoder.build(tiny_config.model_copy(update={"text": text})).eval()
    shutil.rmtree(source)
    return model


@pytest.fixture
def data_set(tmp_path):
    """Karpathy's JSON over twelve pictures of noise: six to train on, three to validate on, three to test on."""
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    random = np.random.default_rng(0)
    images = []
    for number, split in enumerate(["train"] * 6 + ["val"] * 3 + ["test"] * 3):
        name = f"{number}.png"
        Image.fromarray(random.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(folder / "images" / name)
        sentences = [{"raw": f"{CAPTIONS[number % 5]} number {number}"}, {"raw": f"picture {number}"}]
        images.append({"filename": name, "split": split, "sentences": sentences})
    (folder / "dataset.json").write_text(json.dumps({"images": images}))
    return folder


@pytest.fixture
def run_python():
    """Runs Python code in a process of its own, far from the source tree; returns the finished process."""

    def run(code, cwd, *arguments, **environment):
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            cwd=cwd,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=120,
        )

    return run
