"""cliplet show: the ranking by brute force, the picture of it, and what is refused."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from cliplet.cli.show import show
from cliplet.config import ModelConfig, PreprocessConfig
from cliplet.drawing import caption_sheet
from cliplet.errors import ConfigError, DataError, ImageError
from cliplet.evaluation.show import DRAWN, gather_captions, rank_captions
from cliplet.runtime.encoder import Encoder, load
from cliplet.runtime.engines import TorchEngine

BLUE = (0x1F, 0x5F, 0xBF)


@pytest.fixture
def picture(tmp_path):
    file = tmp_path / "a picture.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    return file


@pytest.fixture(scope="module")
def encoder(saved_model):
    return load(saved_model)


class Ruled:
    """An engine without a model: the caption with n tokens lies at n times ten degrees from every picture."""

    logit_scale = None

    def image_features(self, pixels_BSS3):
        return np.tile(np.array([[1, 0]], np.float32), (len(pixels_BSS3), 1))

    def text_features(self, input_ids_CL, attention_mask_CL):
        angle = np.deg2rad(10 * attention_mask_CL.sum(axis=1))
        return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def words(texts):
    """One token a word."""
    mask = np.zeros((len(texts), max(len(text.split()) for text in texts)), np.int64)
    for row, text in enumerate(texts):
        mask[row, : len(text.split())] = 1
    return mask, mask


def test_captions_are_ranked_by_cosine_and_a_model_without_a_scale_has_no_shares(picture):
    ruled = Encoder(Ruled(), words, PreprocessConfig(image_size=32), 2)
    found = rank_captions(ruled, "ruled", str(picture), ["a a a", "b", "c", "d d"])
    assert [(one.rank, one.text) for one in found.captions] == [(1, "b"), (2, "c"), (3, "d d"), (4, "a a a")]
    assert [one.cosine for one in found.captions] == pytest.approx(
        [math.cos(math.radians(n)) for n in (10, 10, 20, 30)]
    )
    assert found.logit_scale is None and {one.share for one in found.captions} == {None}


def test_shares_are_the_softmax_at_the_models_own_scale(encoder, picture, captions):
    found = rank_captions(encoder, "tiny", str(picture), captions)
    cosine = encoder.encode_text(captions) @ encoder.encode_image([picture])[0]
    power = np.exp(cosine / 0.07)
    assert found.logit_scale == pytest.approx(1 / 0.07), "a new model's"
    shown = {one.text: one for one in found.captions}
    for text, expected, share in zip(captions, cosine, power / power.sum(), strict=True):
        assert shown[text].cosine == pytest.approx(expected, abs=1e-5)
        assert shown[text].share == pytest.approx(share, abs=1e-4)
    assert sum(one.share for one in found.captions) == pytest.approx(1)
    assert rank_captions(encoder, "tiny", str(picture), captions[:1]).captions[0].share is None


def test_a_temperature_that_depends_on_the_batch_is_no_scale(tiny_config):
    import torch

    class Model:
        config = ModelConfig.model_validate(tiny_config.model_dump() | {"temperature": {"kind": "dynamic"}})
        logit_scale = torch.tensor(5.0)

    assert Encoder(TorchEngine(Model()), words, PreprocessConfig(), 2).logit_scale is None
    Model.config = tiny_config
    assert Encoder(TorchEngine(Model()), words, PreprocessConfig(), 2).logit_scale == 5


def test_captions_come_from_words_and_from_a_file_each_once(tmp_path):
    file = tmp_path / "captions.txt"
    file.write_text("\ufeffa dog\r\n\r\n  a cat \n雪の中の犬\n", encoding="utf-8")
    assert gather_captions(["a bird", "a cat"], file) == ["a bird", "a cat", "a dog", "雪の中の犬"]
    assert gather_captions(["half \udc80 a character"]) == ["half ? a character"]
    with pytest.raises(ConfigError, match="caption 2 is empty"):
        gather_captions(["a", " "])
    with pytest.raises(ConfigError, match="no caption"):
        gather_captions([])
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(ConfigError, match="no caption"):
        gather_captions([], tmp_path / "empty.txt")
    file.write_bytes(b"a dog\n\xff\xfe")
    with pytest.raises(DataError, match=r"no UTF-8 text.*at byte 6"):
        gather_captions([], file)
    with pytest.raises(DataError, match=r"gone\.txt: cannot be read"):
        gather_captions([], tmp_path / "gone.txt")


def test_the_command_prints_a_table_and_draws(saved_model, picture, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    show([str(saved_model), str(picture), "a [red]boat[/red]", "two dogs " * 60])
    shown = capsys.readouterr().out
    assert "a [red]boat[/red]" in shown and "%" in shown and "picture: show.png" in shown
    assert Image.open("show.png").width > 900
    show([str(saved_model), str(picture), "one", "--out", "one.jpg"])
    assert "%" not in capsys.readouterr().out
    assert Image.open("one.jpg").format == "JPEG"
    show([str(saved_model), str(picture), "one", "--out", "None"])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a picture.png", "one.jpg", "show.png"]


def test_json_is_all_there_is_on_standard_output(saved_model, picture, tmp_path, capsys):
    lines = [f"caption {n}" for n in range(200)]
    (tmp_path / "many.txt").write_text("\n".join(lines))
    many = ["--captions", str(tmp_path / "many.txt"), "--out", str(tmp_path / "new" / "many.png")]
    show([str(saved_model), str(picture), *many, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["format"] == "cliplet-show" and found["format_version"] == 1
    assert found["model"] == str(saved_model) and found["image"] == str(picture)
    assert [one["rank"] for one in found["captions"]] == list(range(1, 201))
    assert {one["text"] for one in found["captions"]} == set(lines)
    assert (tmp_path / "new" / "many.png").is_file()
    show([str(saved_model), str(picture), *many])
    shown = capsys.readouterr().out
    assert f"The best {DRAWN} of 200 captions are shown" in shown and found["captions"][0]["text"] in shown


def test_what_cannot_be_shown_is_refused_before_the_model_is_opened(picture, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    nowhere = str(tmp_path / "no model")
    with pytest.raises(ImageError, match=r"bad\.png"):
        show([nowhere, str(tmp_path / "bad.png"), "a"])
    with pytest.raises(ImageError, match="no such file"):
        show([nowhere, str(tmp_path / "gone.png"), "a"])
    with pytest.raises(ConfigError, match="caption 1 is empty"):
        show([nowhere, str(picture), ""])
    with pytest.raises(DataError, match="no picture format"):
        show([nowhere, str(picture), "a", "--out", str(tmp_path / "a.txt")])
    before = picture.read_bytes()
    with pytest.raises(ConfigError, match="is the picture that is asked about"):
        show([nowhere, str(picture), "a", "--out", str(tmp_path / "." / picture.name)])
    assert picture.read_bytes() == before


def blue(sheet, row=None):
    """Blue pixels, of all or of each row of the picture."""
    found = (np.asarray(sheet) == BLUE).all(axis=2)
    return found.sum() if row is None else found.sum(axis=1)


def test_bars_are_as_long_as_the_shares():
    red = Image.new("RGB", (80, 40), "red")
    lengths = blue(caption_sheet(red, [("a", 0.9, 0.75), ("b", 0.1, 0.25), ("c", 0.0, 0.0)], side=200), row=True)
    longest, shorter = np.unique(lengths[lengths > 0])[::-1]
    assert longest == pytest.approx(0.75 * 300, abs=2) and shorter == pytest.approx(0.25 * 300, abs=2)
    assert blue(caption_sheet(red, [("a", 0.5, None)], side=200), row=True).max() == pytest.approx(150, abs=2)
    assert blue(caption_sheet(red, [("a", -0.5, None)], side=200)) == 0


@pytest.mark.parametrize("caption", ["", "雪の中の犬" * 40, "😀 dog", "half \ud800", "x" * 900, "a\0b\nc"])
def test_any_caption_can_be_drawn_beside_its_picture(caption):
    sheet = caption_sheet(Image.new("RGB", (40, 80), "red"), [(caption, 0.3, None)], note=caption, side=200)
    assert sheet.width == 100 + 300 + 36 and sheet.height < 330


def test_an_unreadable_picture_has_no_sheet(tmp_path):
    with pytest.raises(ImageError, match="no such file"):
        caption_sheet(tmp_path / "gone.png", [("a", 0.5, None)])
