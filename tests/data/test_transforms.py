"""Views: within the picture, of the areas asked for, the same from the same seed, and replayable."""

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image

from cliplet.config import AugmentConfig
from cliplet.data.transforms import DRAWS_A_VIEW, View, apply_view, draw_view

DRAWS = 2000
WHOLE = View(0.0, 0.0, 1.0, 1.0, False)


def draws(config, seed=0, count=DRAWS):
    random = np.random.default_rng(seed)
    return [draw_view(config, random.random(DRAWS_A_VIEW)) for _ in range(count)]


def picture(width=37, height=53, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


CONFIGS = [
    AugmentConfig(),
    AugmentConfig(crop_scale=(0.5, 1.0)),
    AugmentConfig(crop_scale=(0.08, 1.0)),
    AugmentConfig(crop_scale=(0.9, 1.0), crop_ratio=(0.1, 10.0)),
    AugmentConfig(crop_scale=(1.0, 1.0), crop_ratio=(0.5, 0.5)),
    AugmentConfig(crop_scale=(0.001, 0.01), crop_ratio=(3.0, 4.0), flip=1.0),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_views_lie_within_the_picture(config):
    for view in draws(config):
        assert 0 <= view.left < view.right <= 1 + 1e-12
        assert 0 <= view.top < view.bottom <= 1 + 1e-12


@pytest.mark.parametrize("config", CONFIGS)
def test_area_share_is_uniform_over_crop_scale(config):
    areas = np.array([(view.right - view.left) * (view.bottom - view.top) for view in draws(config)])
    low, high = config.crop_scale
    assert areas.min() >= low - 1e-9
    assert areas.max() <= high + 1e-9
    standard_error = (high - low) / math.sqrt(12 * DRAWS)
    assert areas.mean() == pytest.approx((low + high) / 2, abs=4 * standard_error + 1e-9)
    if high > low:  # quarters of the range are met equally often; 4 standard deviations of a binomial
        counts = np.histogram(areas, bins=4, range=(low, high))[0]
        assert np.abs(counts - DRAWS / 4).max() < 4 * math.sqrt(DRAWS * 3 / 16)


def test_ratio_is_log_uniform_where_every_crop_fits():
    config = AugmentConfig(crop_scale=(0.2, 0.5), crop_ratio=(0.75, 4 / 3))  # sides up to sqrt(0.5 * 4 / 3) < 1
    logs = np.array([math.log((v.right - v.left) / (v.bottom - v.top)) for v in draws(config)])
    reach = math.log(4 / 3)
    assert np.abs(logs).max() <= reach + 1e-9
    assert logs.mean() == pytest.approx(0, abs=4 * 2 * reach / math.sqrt(12 * DRAWS))
    assert logs.std() == pytest.approx(2 * reach / math.sqrt(12), rel=0.06)


def test_a_crop_that_would_not_fit_keeps_its_area():
    """Hand-worked: an area of 0.81 at ratio 4 would be 1.8 wide; as wide as the picture, it is 0.81 high."""
    config = AugmentConfig(crop_scale=(0.81, 0.81), crop_ratio=(4.0, 4.0), flip=0.0)
    view = draw_view(config, (0.3, 0.3, 0.5, 0.5, 0.5))
    assert (view.left, view.right) == pytest.approx((0.0, 1.0))
    assert (view.top, view.bottom) == pytest.approx((0.095, 0.905))


def test_a_crop_worked_by_hand():
    """Area 0.25 at ratio 1: half as wide and high; placed at a quarter and at all of the free half."""
    config = AugmentConfig(crop_scale=(0.25, 0.25), crop_ratio=(1.0, 1.0), flip=0.5)
    left = draw_view(config, (0.9, 0.9, 0.25, 1.0, 0.49))
    assert asdict(left) == pytest.approx({"left": 0.125, "top": 0.5, "right": 0.625, "bottom": 1.0, "flip": True})
    assert not draw_view(config, (0.9, 0.9, 0.25, 1.0, 0.5)).flip


def test_places_are_uniform():
    config = AugmentConfig(crop_scale=(0.25, 0.25), crop_ratio=(1.0, 1.0))
    for side in ("left", "top"):
        places = np.array([getattr(view, side) for view in draws(config)]) * 2
        assert places.mean() == pytest.approx(0.5, abs=4 / math.sqrt(12 * DRAWS))
        assert places.min() < 0.01 and places.max() > 0.99


@pytest.mark.parametrize("flip", [0.0, 0.25, 0.5, 1.0])
def test_flips_come_as_often_as_asked(flip):
    share = np.mean([view.flip for view in draws(AugmentConfig(flip=flip))])
    assert share == pytest.approx(flip, abs=4 * math.sqrt(flip * (1 - flip) / DRAWS))


def test_the_seed_decides():
    config = AugmentConfig()
    assert draws(config, seed=3, count=50) == draws(config, seed=3, count=50)
    assert draws(config, seed=3, count=50) != draws(config, seed=4, count=50)


@pytest.mark.parametrize("size", [16, 32, 90])
@pytest.mark.parametrize("shape", [(37, 53), (64, 64), (500, 375), (2000, 1500)])
def test_whole_view_is_the_picture_as_pillow_resizes_it(shape, size):
    """Rows first, as PyTorch does; the two round the values between in their own ways."""
    pixels = picture(*shape)
    rows = Image.fromarray(pixels).resize((size, shape[1]), Image.Resampling.BICUBIC)
    expected = np.asarray(rows.resize((size, size), Image.Resampling.BICUBIC)).astype(int)
    difference = np.abs(apply_view(pixels, WHOLE, size).numpy() - expected)
    assert difference.max() <= 2 and difference.mean() < 0.1


def test_whole_view_of_a_picture_of_the_right_size_is_the_picture():
    pixels = picture(32, 32)
    np.testing.assert_array_equal(apply_view(pixels, WHOLE, 32), pixels)


def test_flip_is_the_mirror():
    pixels = picture()
    view = View(0.1, 0.2, 0.7, 0.9, False)
    mirrored = View(0.1, 0.2, 0.7, 0.9, True)
    straight = apply_view(pixels, view, 32).numpy()
    np.testing.assert_array_equal(apply_view(pixels, mirrored, 32), straight[:, ::-1])
    assert not np.array_equal(apply_view(pixels, mirrored, 32), straight)


def test_a_view_on_whole_pixels_is_the_cut_out_part():
    pixels = picture(64, 80)
    view = View(16 / 64, 20 / 80, 48 / 64, 52 / 80, False)  # 32 x 32 pixels from (16, 20) on
    np.testing.assert_array_equal(apply_view(pixels, view, 32), pixels[20:52, 16:48])


def test_a_view_between_pixels_is_cut_at_the_nearest():
    """Hand-worked: 0.32 to 0.67 of ten pixels are 3.2 and 6.7, so pixels 3 to 6."""
    pixels = picture(10, 10)
    view = View(0.32, 0.32, 0.67, 0.67, False)
    np.testing.assert_array_equal(apply_view(pixels, view, 4), pixels[3:7, 3:7])


def test_pixels_that_must_not_be_written_to_are_only_read():
    pixels = picture()
    expected = apply_view(pixels, WHOLE, 16)
    pixels.flags.writeable = False
    np.testing.assert_array_equal(apply_view(pixels, WHOLE, 16), expected)


def test_a_stored_view_gives_the_same_pixels_again():
    pixels = picture(120, 90)
    for view in draws(AugmentConfig(crop_scale=(0.1, 1.0)), count=20):
        first = apply_view(pixels, view, 48)
        stored = View(**asdict(view))
        np.testing.assert_array_equal(apply_view(pixels.copy(), stored, 48), first)
        assert first.shape == (48, 48, 3) and first.dtype == torch.uint8


@pytest.mark.parametrize("size", [(2, 2), (2, 900), (900, 2), (3, 5)])
@pytest.mark.parametrize("config", CONFIGS)
def test_odd_pictures_and_crops_can_be_applied(size, config):
    pixels = picture(*size)
    for view in draws(config, count=60):
        assert apply_view(pixels, view, 16).shape == (16, 16, 3)


@pytest.mark.parametrize("corner", [0.0, 1.0 - 2**-53])
def test_extreme_draws_stay_within_the_picture(corner):
    for config in CONFIGS:
        for area in (0.0, 0.1, 0.37, 1.0 - 2**-53):
            view = draw_view(config, (area, corner, corner, corner, 0.0))
            assert apply_view(picture(511, 333), view, 16).shape == (16, 16, 3)
