"""An Encoder whose vectors are known, and a command of its own that embeds with it slowly, to be killed.

    python embed_stub.py FOLDER OUT [--limit BYTES]

A picture's vector is its mean colour, and how many were in its batch: so a resumed run that batches otherwise shows.
"""

import resource
import sys
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image

from cliplet.config import PreprocessConfig
from cliplet.runtime.encoder import Encoder

DIMS = 4


class Engine:
    """Waits a little for each batch, as one that computes would."""

    logit_scale = None
    image_batch = text_batch = 8

    def __init__(self, seconds=0.0):
        self.seconds, self.pictures = seconds, 0
        self.fails_after = None  # pictures
        self.error = RuntimeError("the engine broke")
        self._counting = threading.Lock()

    def image_features(self, pixels_BSS3):
        with self._counting:
            self.pictures += len(pixels_BSS3)
            fails = self.fails_after is not None and self.pictures > self.fails_after
        if fails:
            raise self.error
        # The first picture's colour decides how long it takes: neighbours do not end in their order.
        time.sleep(self.seconds * (1 + int(pixels_BSS3[0, 0, 0, 0]) % 3))
        return image_vectors(pixels_BSS3.mean((1, 2)))

    def text_features(self, input_ids_CL, attention_mask_CL):
        lengths = attention_mask_CL.sum(1)
        return np.stack([lengths, input_ids_CL[:, 0], lengths * 0, lengths * 0 + 1], axis=1).astype(np.float32)


def image_vectors(colours_B3):
    return np.concatenate([colours_B3 / 255, np.full((len(colours_B3), 1), len(colours_B3))], axis=1).astype(np.float32)


def tokenizer(texts):
    """Letters to numbers; an empty text is one zero."""
    longest = max(1, *map(len, texts))
    ids, mask = np.zeros((len(texts), longest), np.int64), np.zeros((len(texts), longest), np.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = [ord(letter) for letter in text], 1
    return ids, mask


def encoder(source="", seconds=0.0):
    """`source`: a folder that stands for the model's."""
    return Encoder(Engine(seconds), tokenizer, PreprocessConfig(image_size=8), DIMS, str(source))


def colour(number):
    return (number * 7 % 256, number * 31 % 256, number * 101 % 256)


def write_pictures(folder, count):
    """`count` pictures of one colour each, as 000.png and so on; their paths."""
    folder.mkdir()
    files = [folder / f"{number:03d}.png" for number in range(count)]
    for number, file in enumerate(files):
        Image.new("RGB", (9, 9), colour(number)).save(file)
    return files


if __name__ == "__main__":
    from cliplet import cli, embedding
    from cliplet.embedding import work
    from cliplet.runtime import pipeline

    place, out, *limit = sys.argv[1:]
    pipeline.cores = lambda: 2
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit[1]), int(limit[1])))
    work.SAVE_SECONDS = 0.0
    model = encoder(Path(place).parent / "model", seconds=0.02)
    cli.VERBS["stub"] = lambda words: print(
        embedding.embed(embedding.find_pictures([place]), model, out, say=lambda said: print(said)).to_json()
    )
    sys.exit(cli.main(["stub"]))
