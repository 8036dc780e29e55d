"""Row i is input i: whatever the order, the batch, the kind of input, and what else is broken."""

import io
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cliplet
import cliplet.runtime.pictures as pictures_module
from cliplet.config import PreprocessConfig
from cliplet.errors import ImageError, ModelError
from cliplet.runtime.cores import cores
from cliplet.runtime.encoder import Encoder

COLOURS = [(200, 10, 20), (10, 220, 30), (5, 15, 240), (120, 130, 10), (90, 5, 200), (33, 99, 66), (255, 250, 1)]


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class Engine:
    """The feature of a picture is its mean colour; of a text, how often it has each of its first three numbers."""

    def __init__(self):
        self.image_batches, self.text_shapes = [], []

    logit_scale = None
    image_batch, text_batch = 64, 256

    def image_features(self, pixels_BSS3):
        assert pixels_BSS3.dtype == np.uint8 and pixels_BSS3.shape[1:] == (16, 16, 3)
        self.image_batches.append(len(pixels_BSS3))
        return unit(pixels_BSS3.mean((1, 2)).astype(np.float32))

    def text_features(self, input_ids_CL, attention_mask_CL):
        self.text_shapes.append(input_ids_CL.shape)
        weights = np.arange(1, input_ids_CL.shape[1] + 1)
        real = input_ids_CL * attention_mask_CL
        sums = np.stack([real.sum(1), (real * weights).sum(1), attention_mask_CL.sum(1)], axis=1)
        return unit(sums.astype(np.float32))


def tokenizer(texts):
    """Letters to numbers, padded with 999, which must play no part."""
    longest = max(map(len, texts), default=1)
    ids = np.full((len(texts), longest), 999)
    mask = np.zeros((len(texts), longest), dtype=np.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = [ord(c) for c in text], 1
    return ids, mask


@pytest.fixture
def encoder():
    return Encoder(Engine(), tokenizer, PreprocessConfig(image_size=16), 3)


def picture(colour, size=(30, 20)):
    return Image.new("RGB", size, colour)


def encoded(colour):
    stream = io.BytesIO()
    picture(colour).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def mixed(tmp_path):
    """The seven colours as seven kinds of input."""
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for file, colour in zip(files, COLOURS, strict=False):
        picture(colour).save(file)
    array = np.asarray(picture(COLOURS[4]))
    floats = np.asarray(picture(COLOURS[5])) / 255
    rgba = picture(COLOURS[6]).convert("RGBA")
    return [files[0], str(files[1]), picture(COLOURS[2], (16, 90)), encoded(COLOURS[3]), array, floats, rgba]


EXPECTED = unit(np.array(COLOURS, dtype=np.float32))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 64])
def test_row_is_input_for_every_order_batch_and_kind(encoder, mixed, batch_size):
    random = np.random.default_rng(batch_size)
    for order in (np.arange(7), np.arange(7)[::-1], random.permutation(7), random.integers(0, 7, 20)):
        got = encoder.encode_image([mixed[i] for i in order], batch_size=batch_size)
        assert got.dtype == np.float32 and got.shape == (len(order), 3)
        np.testing.assert_allclose(got, EXPECTED[order], atol=1e-6)
    assert max(encoder.engine.image_batches) <= batch_size


@pytest.mark.parametrize("bad", [{0}, {6}, {2, 3}, {0, 1, 5, 6}, set(range(7))], ids=str)
@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
def test_bad_pictures_are_nan_under_their_own_rows_and_shift_none(encoder, mixed, tmp_path, bad, batch_size):
    broken = [tmp_path / "none.png", b"no picture", np.zeros((3, 3, 7), np.uint8), np.full((9, 9, 3), 2.0)]
    images = [broken[i % 4] if i in bad else image for i, image in enumerate(mixed)]
    failed = {}
    got = encoder.encode_image(images, batch_size=batch_size, failed=failed)
    assert set(failed) == bad and all(isinstance(error, ImageError) for error in failed.values())
    for row in range(7):
        if row in bad:
            assert np.isnan(got[row]).all()
        else:
            np.testing.assert_allclose(got[row], EXPECTED[row], atol=1e-6)
    if 0 in bad:
        assert str(tmp_path / "none.png") in failed[0].message


def test_without_a_place_for_them_a_bad_picture_is_an_error_that_names_it(encoder, mixed, tmp_path):
    with pytest.raises(ImageError, match=r"input 3: .*gone\.png: no such file"):
        encoder.encode_image([*mixed[:3], tmp_path / "gone.png", *mixed[3:]])
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("encode")]
    assert not threads  # and nothing goes on behind


@pytest.mark.parametrize("batch_size", [1, 2, 4, 64])
def test_texts_come_back_in_their_order(encoder, batch_size):
    texts = ["a boat", "b", "the longest sentence of them all", "?", "zebra", "b", "ab", "ba"]
    got = encoder.encode_text(texts, batch_size=batch_size)
    assert got.dtype == np.float32
    for row, text in enumerate(texts):
        np.testing.assert_allclose(got[row : row + 1], Engine().text_features(*tokenizer([text])), atol=1e-6)
    assert np.array_equal(got[1], got[5]) and not np.allclose(got[6], got[7])


def test_texts_of_like_length_are_batched_together(encoder):
    encoder.encode_text(["x" * 50, "a", "y" * 49, "b"], batch_size=2)
    assert sorted(shape[1] for shape in encoder.engine.text_shapes) == [1, 50]


def test_nothing_gives_nothing(encoder):
    for features in (encoder.encode_image([]), encoder.encode_text([]), encoder.encode_image([], failed={})):
        assert features.shape == (0, 3) and features.dtype == np.float32
    assert not encoder.engine.image_batches and not encoder.engine.text_shapes


@pytest.mark.parametrize("single", ["a.jpg", Path("a.jpg"), b"\xff\xd8", iter(["a.jpg"]), np.zeros((2, 4, 4, 3))])
def test_a_single_picture_is_a_mistake(encoder, single):
    with pytest.raises(TypeError, match="list of pictures"):
        encoder.encode_image(single)


@pytest.mark.parametrize("single", ["a red boat", iter(["a"]), 3])
def test_a_single_text_is_a_mistake(encoder, single):
    with pytest.raises(TypeError, match="list of sentences"):
        encoder.encode_text(single)


def test_inputs_are_left_as_they_are(encoder):
    array = np.asarray(picture(COLOURS[0])).copy()
    image = picture(COLOURS[1], (40, 31))
    before = array.copy(), image.copy()
    encoder.encode_image([array, image])
    assert np.array_equal(array, before[0]) and image == before[1]


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_decoding_does_not_run_far_ahead_of_what_is_used(encoder, monkeypatch, batch_size):
    """Memory stays bounded: of a million pictures, only a few batches are ever decoded and not yet used."""
    decoded, used, most = [0], [0], [0]
    lock = threading.Lock()

    def decode(image, config):
        with lock:
            decoded[0] += 1
            most[0] = max(most[0], decoded[0] - used[0])
        return image

    def compute(pixels_BSS3):
        time.sleep(0.002)  # slower than decoding, so that nothing but the bound holds it back
        with lock:
            used[0] += len(pixels_BSS3)
        return unit(pixels_BSS3.mean((1, 2)).astype(np.float32))

    monkeypatch.setattr(pictures_module, "preprocess_image", decode)
    encoder.engine.image_features = compute
    images = [np.full((16, 16, 3), 1 + number % 250, np.uint8) for number in range(400)]
    encoder.encode_image(images, batch_size=batch_size)
    assert decoded[0] == used[0] == 400
    assert most[0] <= 2 * cores() * batch_size


def test_progress_is_told_after_each_batch(encoder, mixed):
    heard = []
    encoder.encode_image(mixed, batch_size=3, progress=lambda done, total: heard.append((done, total)))
    assert heard == [(3, 7), (6, 7), (7, 7)]
    heard.clear()
    encoder.encode_text(["a"] * 5, batch_size=2, progress=lambda done, total: heard.append((done, total)))
    assert heard == [(1, 5), (3, 5), (5, 5)]  # the longest first, so that the last batches are quick


def test_an_engine_that_fails_ends_the_call_and_its_threads(encoder, mixed):
    def fail(pixels_BSS3):
        raise RuntimeError("out of memory")

    encoder.engine.image_features = fail
    with pytest.raises(RuntimeError, match="out of memory"):
        encoder.encode_image(mixed, batch_size=2)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("encode")]


def test_a_torch_model_is_left_in_the_mode_it_was_in(tiny_model, captions):
    from cliplet.runtime.engines import TorchEngine

    encoder = Encoder(TorchEngine(tiny_model), tiny_model.tokenizer, tiny_model.config.preprocess, 16)
    calm = encoder.encode_text(captions)
    tiny_model.train()
    assert np.array_equal(encoder.encode_text(captions), calm)  # no dropout, whatever the mode outside
    assert tiny_model.training
    np.testing.assert_allclose(np.linalg.norm(encoder.encode_image([picture((1, 2, 3))]), axis=1), 1, atol=1e-6)
    assert tiny_model.training


# -- opening


def test_a_run_folder_opens_by_its_best_model_and_says_so(saved_model, tmp_path):
    for name in ("model", "last"):
        shutil.copytree(saved_model, tmp_path / "run" / name)
    heard = []
    encoder = cliplet.load(tmp_path / "run", heard.append)
    assert encoder.source == str(tmp_path / "run" / "model")
    assert heard == [f"{tmp_path / 'run'} is a run: its best model is taken, {tmp_path / 'run' / 'model'}"]
    heard.clear()
    plain = cliplet.load(saved_model, heard.append)
    assert heard == [] and plain.source == str(saved_model)
    assert np.array_equal(encoder.encode_text(["a red boat"]), plain.encode_text(["a red boat"]))


def test_a_folder_without_a_model_is_named_as_it_was_given(tmp_path):
    with pytest.raises(ModelError, match="no such model folder") as caught:
        cliplet.load(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in caught.value.message
    (tmp_path / "run" / "last").mkdir(parents=True)
    with pytest.raises(ModelError, match=str(tmp_path / "run")):
        cliplet.load(tmp_path / "run")
