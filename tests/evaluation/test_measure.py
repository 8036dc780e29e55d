"""One bad picture leaves with its captions and shifts nobody."""

import numpy as np
import pytest
from PIL import Image

from cliplet.config import PreprocessConfig
from cliplet.data.quarantine import Quarantine
from cliplet.data.records import ImageText
from cliplet.errors import DataError, ImageError
from cliplet.evaluation import evaluate, retrieval_metrics
from cliplet.evaluation.measure import assembled
from cliplet.runtime.encoder import Encoder

NOISE = 12.0


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


class Engine:
    """Pictures are mean colours; captions are colours written as three numbers."""

    logit_scale = None

    def image_features(self, pixels_BSS3):
        return unit(pixels_BSS3.mean((1, 2)) - 127.5)

    def text_features(self, input_ids_CL, attention_mask_CL):
        return unit(input_ids_CL - 127.5)


def tokenizer(texts):
    ids = np.array([[int(word) for word in text.split()] for text in texts])
    return ids, np.ones_like(ids)


@pytest.fixture
def encoder():
    return Encoder(Engine(), tokenizer, PreprocessConfig(image_size=8), 3)


@pytest.fixture
def records(tmp_path):
    """Twenty pictures of one colour each, with one to three captions that are near it."""
    random = np.random.default_rng(0)
    result = []
    for number in range(20):
        colour = random.integers(20, 236, 3)
        file = tmp_path / f"{number}.png"
        Image.new("RGB", (12, 9), tuple(int(c) for c in colour)).save(file)
        near = (colour + random.normal(0, NOISE, (1 + number % 3, 3))).round().clip(0, 255).astype(int)
        result.append(ImageText(str(file), tuple(" ".join(map(str, row)) for row in near)))
    return result


def test_features_and_owners_are_those_of_the_records(encoder, records):
    found = evaluate(encoder, records)
    assert found.records == records
    assert found.captions == [caption for record in records for caption in record.captions]
    owners = [row for row, record in enumerate(records) for _ in record.captions]
    assert found.caption_image_M.tolist() == owners
    assert found.metrics == retrieval_metrics(found.image_ND, found.text_MD, np.array(owners))
    assert 20 < found.metrics["text_to_image_R@1"] < 100  # neither trivial nor lost, so a shift would show
    shifted = retrieval_metrics(np.roll(found.image_ND, 1, axis=0), found.text_MD, np.array(owners))
    assert shifted["rsum"] < found.metrics["rsum"] / 2


@pytest.mark.parametrize("bad", [{0}, {19}, {7, 8}, {0, 3, 11, 19}, set(range(19))], ids=str)
def test_bad_pictures_leave_with_their_captions_and_shift_no_row(encoder, records, tmp_path, bad):
    clean = [record for row, record in enumerate(records) if row not in bad]
    expected = evaluate(encoder, clean)
    for row in bad:
        (tmp_path / f"{row}.png").write_bytes(b"<html>404</html>")
    quarantine = Quarantine(tmp_path / "quarantine.jsonl")
    found = evaluate(encoder, records, quarantine)
    assert found.metrics == expected.metrics
    assert found.records == clean and found.captions == expected.captions
    assert np.array_equal(found.image_ND, expected.image_ND) and np.isfinite(found.image_ND).all()
    assert np.array_equal(found.text_MD, expected.text_MD)
    assert np.array_equal(found.caption_image_M, expected.caption_image_M)
    assert len(quarantine) == len(bad) and all(records[row].image in quarantine for row in bad)
    assert len((tmp_path / "quarantine.jsonl").read_text().splitlines()) == len(bad)


def test_without_a_quarantine_a_bad_picture_is_an_error(encoder, records, tmp_path):
    (tmp_path / "7.png").unlink()
    with pytest.raises(ImageError, match=r"7\.png: no such file"):
        evaluate(encoder, records)


def test_all_bad_is_an_error_that_gives_a_reason(encoder, records, tmp_path):
    for row in range(20):
        (tmp_path / f"{row}.png").unlink()
    with pytest.raises(DataError) as caught:
        evaluate(encoder, records, Quarantine())
    assert "none of 20 pictures could be read" in caught.value.message and "no such file" in caught.value.hint


def test_no_records_at_all(encoder):
    with pytest.raises(DataError, match="none of 0 pictures"):
        evaluate(encoder, [], Quarantine())


def test_progress_never_goes_back_or_beyond(encoder, records):
    heard = []
    evaluate(encoder, records, progress=lambda done, total: heard.append((done, total)))
    total = 20 + sum(len(record.captions) for record in records)
    assert {pair[1] for pair in heard} == {total}
    assert [done for done, _ in heard] == sorted(done for done, _ in heard) and heard[-1][0] == total


def test_features_that_are_no_numbers_are_named_by_their_picture(records):
    rows = np.ones((20, 3), np.float32)
    texts = np.ones((sum(len(record.captions) for record in records), 3), np.float32)
    rows[7] = np.nan
    with pytest.raises(DataError, match=r"the features of .*7\.png are no numbers"):
        assembled(records, rows, texts, {})
    texts[-1] = np.inf
    with pytest.raises(DataError, match=r"the features of a caption of .*19\.png are no numbers"):
        assembled(records, np.ones((20, 3), np.float32), texts, {})
