"""The evaluation transform beside torchvision's, and cases worked by hand."""

import io

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import v2

from cliplet.config import PreprocessConfig
from cliplet.errors import ImageError
from cliplet.runtime.preprocess import evaluation_grid, preprocess_image


def photograph(width, height, seed=0):
    """Noise of large grains with some fine noise on it: edges and texture, as a photograph has them."""
    random = np.random.default_rng(seed)
    grains = Image.fromarray(random.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    base = np.asarray(grains.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((base + random.integers(-20, 21, base.shape)).clip(0, 255).astype(np.uint8))


def torchvision_pixels(image, size, crop_fraction):
    """Resize(round(size / crop_fraction)) and CenterCrop(size), as timm and torchvision evaluate."""
    transform = v2.Compose(
        [
            v2.Resize(round(size / crop_fraction), interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.CenterCrop(size),
        ]
    )
    return np.asarray(transform(image)).astype(int)


@pytest.mark.parametrize("size", [32, 64, 224])
@pytest.mark.parametrize("side", [50, 224, 333])
def test_a_square_is_torchvisions_pixel_for_pixel(size, side):
    image = photograph(side, side)
    config = PreprocessConfig(image_size=size)
    np.testing.assert_array_equal(preprocess_image(image, config), torchvision_pixels(image, size, 1.0))


SHAPES = [(500, 375), (375, 500), (333, 500), (401, 299), (1024, 683), (100, 90), (60, 200), (128, 64), (64, 192)]


@pytest.mark.parametrize(("width", "height"), SHAPES)
@pytest.mark.parametrize("crop_fraction", [1.0, 0.875, 0.95])
@pytest.mark.parametrize("size", [32, 128])
def test_every_shape_is_torchvisions_to_a_level(width, height, crop_fraction, size):
    """Only where the values between the two passes are rounded may differ; a grid off by one pixel would give 30."""
    image = photograph(width, height)
    ours = preprocess_image(image, PreprocessConfig(image_size=size, crop_fraction=crop_fraction))
    difference = np.abs(ours - torchvision_pixels(image, size, crop_fraction))
    assert difference.max() <= 1 and difference.mean() < 0.3


@pytest.mark.parametrize(("width", "height"), [(1600, 1067), (1067, 1600), (2000, 1333), (1501, 999)])
@pytest.mark.parametrize("crop_fraction", [1.0, 0.875])
def test_a_reduced_jpeg_keeps_to_the_whole_pictures_grid(width, height, crop_fraction):
    """Sides that no reduction divides: a grid taken from the reduced picture would be off by up to a pixel."""
    stream = io.BytesIO()
    photograph(width, height).save(stream, "JPEG", quality=95)
    config = PreprocessConfig(image_size=64, crop_fraction=crop_fraction)
    whole = torchvision_pixels(Image.open(io.BytesIO(stream.getvalue())), 64, crop_fraction)
    difference = np.abs(preprocess_image(stream.getvalue(), config) - whole)
    assert difference.mean() < 1 and difference.max() <= 8


@pytest.mark.parametrize(
    ("shape", "grid"),
    [
        ((500, 375), (42, 32, 5, 0)),  # 32 * 500 / 375 = 42.67, cut down; (42 - 32) / 2
        ((375, 500), (32, 42, 0, 5)),
        ((334, 500), (32, 47, 0, 8)),  # (47 - 32) / 2 = 7.5, to the even 8
        ((64, 64), (32, 32, 0, 0)),
    ],
)
def test_the_grid_worked_by_hand(shape, grid):
    assert evaluation_grid(*shape, PreprocessConfig(image_size=32)) == grid


def test_a_square_of_the_right_size_is_unchanged():
    image = photograph(48, 48)
    np.testing.assert_array_equal(preprocess_image(image, PreprocessConfig(image_size=48)), np.asarray(image))


def test_only_the_centre_is_seen():
    """Twice as wide as high: the outer quarters are red, and no red comes through beyond the filter's reach."""
    pixels = np.full((64, 128, 3), (0, 0, 255), np.uint8)
    pixels[:, :30] = pixels[:, 98:] = (255, 0, 0)
    seen = preprocess_image(Image.fromarray(pixels), PreprocessConfig(image_size=32))
    assert (seen == (0, 0, 255)).all()


@pytest.mark.parametrize(("width", "height"), [(2, 2), (2, 3), (2, 4000), (4000, 2), (3, 900), (8, 7), (5000, 40)])
@pytest.mark.parametrize("crop_fraction", [1.0, 0.5])
def test_tall_wide_and_tiny_pictures(width, height, crop_fraction):
    image = Image.new("RGB", (width, height), (10, 130, 250))
    pixels = preprocess_image(image, PreprocessConfig(image_size=24, crop_fraction=crop_fraction))
    assert pixels.shape == (24, 24, 3) and pixels.dtype == np.uint8
    assert (pixels == (10, 130, 250)).all()


def test_every_kind_of_source_gives_the_same_pixels(tmp_path):
    image, config = photograph(70, 50), PreprocessConfig(image_size=32, crop_fraction=0.9)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    (tmp_path / "a.png").write_bytes(stream.getvalue())
    expected = preprocess_image(image, config)
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), stream.getvalue(), np.asarray(image)):
        np.testing.assert_array_equal(preprocess_image(source, config), expected)


def test_a_large_jpeg_decoded_small_shows_the_same():
    stream = io.BytesIO()
    photograph(1600, 1200).save(stream, "JPEG", quality=95)
    config = PreprocessConfig(image_size=64)
    reduced = preprocess_image(stream.getvalue(), config).astype(int)
    whole = preprocess_image(Image.open(io.BytesIO(stream.getvalue())), config).astype(int)
    assert np.abs(reduced - whole).mean() < 1 and np.abs(reduced - whole).max() <= 8


def test_bad_pictures_are_an_image_error():
    with pytest.raises(ImageError):
        preprocess_image(b"no picture", PreprocessConfig())


def test_the_callers_picture_is_left_alone():
    image = photograph(32, 32)
    before = np.array(image)
    preprocess_image(image, PreprocessConfig(image_size=16))
    np.testing.assert_array_equal(np.asarray(image), before)


# The whole picture, squashed


SQUASH = PreprocessConfig(image_size=32, resize="squash")


@pytest.mark.parametrize("size", [32, 64, 224])
@pytest.mark.parametrize(("width", "height"), [*SHAPES, (224, 224), (20, 10)])
def test_squashed_is_torchvisions_pixel_for_pixel(width, height, size):
    image = photograph(width, height)
    config = PreprocessConfig(image_size=size, resize="squash")
    resize = v2.Resize((size, size), interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
    np.testing.assert_array_equal(preprocess_image(image, config), np.asarray(resize(image)))


def test_crop_fraction_has_no_part_in_squashing():
    image = photograph(70, 50)
    cut = SQUASH.model_copy(update={"crop_fraction": 0.5})
    np.testing.assert_array_equal(preprocess_image(image, cut), preprocess_image(image, SQUASH))


def test_squashed_all_of_the_picture_is_seen():
    """Twice as wide as high: the outer quarters are red, and so are the outer quarters of what is seen."""
    pixels = np.full((64, 128, 3), (0, 0, 255), np.uint8)
    pixels[:, :32] = pixels[:, 96:] = (255, 0, 0)
    seen = preprocess_image(Image.fromarray(pixels), SQUASH)
    assert (seen[:, :6] == (255, 0, 0)).all() and (seen[:, 26:] == (255, 0, 0)).all()
    assert (seen[:, 10:22] == (0, 0, 255)).all()


def test_a_square_is_the_same_squashed_and_cut():
    image = photograph(50, 50)
    np.testing.assert_array_equal(
        preprocess_image(image, SQUASH), preprocess_image(image, PreprocessConfig(image_size=32))
    )
    exact = photograph(32, 32)
    np.testing.assert_array_equal(preprocess_image(exact, SQUASH), np.asarray(exact))


@pytest.mark.parametrize(("width", "height"), [(2, 2), (2, 4000), (4000, 2), (5000, 40)])
def test_squashed_tall_wide_and_tiny_pictures(width, height):
    pixels = preprocess_image(Image.new("RGB", (width, height), (10, 130, 250)), SQUASH)
    assert pixels.shape == (32, 32, 3) and (pixels == (10, 130, 250)).all()


@pytest.mark.parametrize(("width", "height"), [(1600, 1200), (1200, 1600), (2000, 300)])
def test_a_large_jpeg_decoded_small_shows_the_same_squashed(width, height):
    stream = io.BytesIO()
    photograph(width, height).save(stream, "JPEG", quality=95)
    config = PreprocessConfig(image_size=64, resize="squash")
    reduced = preprocess_image(stream.getvalue(), config).astype(int)
    whole = preprocess_image(Image.open(io.BytesIO(stream.getvalue())), config).astype(int)
    assert np.abs(reduced - whole).mean() < 1 and np.abs(reduced - whole).max() <= 8
