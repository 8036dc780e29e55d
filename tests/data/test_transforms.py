"""Views: within the picture, of the areas and colours asked for, the same from the same seed, and replayable."""

import math
from dataclasses import asdict, astuple, fields, replace
from itertools import permutations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from cliplet.config import AugmentConfig
from cliplet.data.transforms import COLOURS_A_VIEW, DRAWS_A_VIEW, VIEW_NUMBERS, View, apply_view, draw_view, stored

DRAWS = 2000
WHOLE = View(0.0, 0.0, 1.0, 1.0, False)


def draws(config, seed=0, count=DRAWS):
    random = np.random.default_rng(seed)
    return [draw_view(config, random.random(DRAWS_A_VIEW), random.random(COLOURS_A_VIEW)) for _ in range(count)]


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
    assert (left.left, left.top, left.right, left.bottom, left.flip) == pytest.approx((0.125, 0.5, 0.625, 1.0, True))
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
        again = View(**asdict(view))
        np.testing.assert_array_equal(apply_view(pixels.copy(), again, 48), first)
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


COLOURS = AugmentConfig(crop_scale=(0.1, 1.0), brightness=0.4, contrast=0.5, saturation=1.0)


def factors(view):
    return view.brightness, view.contrast, view.saturation


def test_colours_worked_by_hand():
    """At three quarters of the way and at none of it: 1 + 0.5 * 0.4, 1 - 0.5; a draw of 0.5 changes nothing."""
    crop = (0.9, 0.9, 0.25, 1.0, 0.49)
    assert factors(draw_view(COLOURS, crop, (0.75, 0.0, 0.5))) == pytest.approx((1.2, 0.5, 1.0))
    assert factors(draw_view(COLOURS, crop, (0.5, 0.5, 0.25))) == (1.0, 1.0, 0.5)
    assert factors(draw_view(COLOURS, crop)) == (1.0, 1.0, 1.0)
    assert astuple(draw_view(COLOURS, crop, (0.1, 0.2, 0.3)))[:5] == astuple(draw_view(COLOURS, crop))[:5]
    with pytest.raises(ValueError, match="longer"):
        draw_view(COLOURS, crop, (0.5, 0.5))


def test_colours_that_are_not_asked_for_stay_whatever_is_drawn():
    pixels = picture()
    for view in draws(AugmentConfig(), count=200):
        assert factors(view) == (1.0, 1.0, 1.0) and not view.recoloured
    some = draws(AugmentConfig(contrast=0.3), count=200)
    assert {(view.brightness, view.saturation) for view in some} == {(1.0, 1.0)}
    assert len({view.contrast for view in some}) == 200 and all(view.recoloured for view in some)
    np.testing.assert_array_equal(apply_view(picture(32, 32), View(*astuple(WHOLE)[:5]), 32), picture(32, 32))
    assert not np.array_equal(apply_view(pixels, replace(WHOLE, contrast=1.3), 32), apply_view(pixels, WHOLE, 32))


GREYS = np.array([[0, 50], [100, 250]], dtype=np.uint8)[..., None].repeat(3, axis=2)  # their mean is 100


@pytest.mark.parametrize(
    ("colour", "pixels", "expected"),
    [
        ({"brightness": 1.5}, GREYS, [0, 75, 150, 255]),
        ({"brightness": 0.0}, GREYS, [0, 0, 0, 0]),
        ({"contrast": 0.5}, GREYS, [50, 75, 100, 175]),
        ({"contrast": 2.0}, GREYS, [0, 0, 100, 255]),
        ({"contrast": 0.0}, GREYS, [100, 100, 100, 100]),
        ({"saturation": 0.0}, GREYS, [0, 50, 100, 250]),
        ({"saturation": 2.0}, GREYS, [0, 50, 100, 250]),
        # The mean grey, 100, is brightened too: 0.5 * (0.5 * x + 0.5 * 100).
        ({"brightness": 0.5, "contrast": 0.5}, GREYS, [25, 37.5, 50, 87.5]),
        # Cut to 0..255 at the end alone: 0.5 * (2 * 250 - 100) = 200, where 255 in between would end at 128.
        ({"brightness": 0.5, "contrast": 2.0}, GREYS, [0, 0, 50, 200]),
    ],
)
def test_changed_greys_worked_by_hand(colour, pixels, expected):
    values = apply_view(pixels, replace(WHOLE, **colour), 2).reshape(4, 3).tolist()
    assert values == [[math.floor(value + 0.5)] * 3 for value in expected]


@pytest.mark.parametrize(
    ("colour", "pixel", "expected"),
    [
        ({"saturation": 0.0}, (255, 0, 0), (76, 76, 76)),  # 0.299 * 255 = 76.2
        ({"saturation": 0.0}, (0, 255, 0), (150, 150, 150)),  # 0.587 * 255 = 149.7
        ({"saturation": 0.0}, (0, 0, 255), (29, 29, 29)),  # 0.114 * 255 = 29.1
        ({"saturation": 2.0}, (100, 150, 200), (59, 159, 255)),  # twice less the grey of 140.75: the last is 259
        ({"saturation": 2.0, "brightness": 0.5}, (100, 150, 200), (30, 80, 130)),  # 29.6, 79.6, 129.6
        ({"contrast": 0.5}, (100, 150, 200), (120, 145, 170)),  # the mean grey is the pixel's: halfway to 140.75
    ],
)
def test_changed_colours_worked_by_hand(colour, pixel, expected):
    pixels = np.full((4, 4, 3), pixel, dtype=np.uint8)
    np.testing.assert_array_equal(apply_view(pixels, replace(WHOLE, **colour), 4), np.full((4, 4, 3), expected))


def interior(width, height):
    """A picture whose colours stay within 0..255 when they are changed a little."""
    return np.random.default_rng(5).integers(90, 160, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("factor", [0.7, 0.93, 1.0, 1.2, 1.4])
def test_colours_change_as_in_torchvision_after_the_resize(factor):
    """To a level: torchvision cuts off below the point, also the greys that it blends with."""
    pixels, view = interior(70, 90), View(0.1, 0.2, 0.8, 0.9, True)
    plain = apply_view(pixels, view, 48).permute(2, 0, 1)
    for name, adjust in (
        ("brightness", tv.adjust_brightness),
        ("contrast", tv.adjust_contrast),
        ("saturation", tv.adjust_saturation),
    ):
        found = apply_view(pixels, replace(view, **{name: factor}), 48).permute(2, 0, 1).int()
        assert (found - adjust(plain, factor).int()).abs().max() <= 1, name


def test_three_colours_come_after_each_other_as_in_torchvision_in_any_order():
    """On floats, which torchvision does not round; so what is left is half a level, and its shorter share of red."""
    pixels, view = interior(70, 90), View(0.1, 0.2, 0.8, 0.9, False)
    plain = apply_view(pixels, view, 48).permute(2, 0, 1)
    found = apply_view(pixels, replace(view, brightness=1.1, contrast=0.8, saturation=1.2), 48).permute(2, 0, 1)
    adjustments = (tv.adjust_brightness, 1.1), (tv.adjust_contrast, 0.8), (tv.adjust_saturation, 1.2)
    for order in permutations(adjustments):
        expected = plain / 255
        for adjust, factor in order:
            expected = adjust(expected, factor)
        assert (found - expected * 255).abs().max() <= 0.55


def test_colours_are_rounded_and_cut_off_once():
    """Against the three blends one after the other in float64, also where values leave 0..255 in between."""
    pixels = picture(60, 60)
    config = AugmentConfig(crop_scale=(0.1, 1.0), flip=0.5, brightness=1.0, contrast=1.0, saturation=1.0)
    for view in draws(config, count=40):
        plain = apply_view(pixels, replace(view, brightness=1.0, contrast=1.0, saturation=1.0), 48).double()
        grey = (plain @ torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64))[..., None]
        saturated = grey + view.saturation * (plain - grey)
        expected = view.brightness * (grey.mean() + view.contrast * (saturated - grey.mean()))
        found = apply_view(pixels, view, 48)
        assert (found - expected.clamp(0, 255)).abs().max() <= 0.5 + 1e-3


def test_changed_colours_leave_the_picture_itself_alone():
    pixels = picture(32, 32)
    changed = apply_view(pixels, View(0, 0, 1, 1, True, 0.5, 0.5, 0.5), 32)
    np.testing.assert_array_equal(pixels, picture(32, 32))
    mirrored = apply_view(pixels, View(0, 0, 1, 1, False, 0.5, 0.5, 0.5), 32)
    np.testing.assert_array_equal(changed, mirrored.flip(1))
    assert changed.dtype == torch.uint8 and changed.shape == (32, 32, 3)


def test_a_view_is_its_numbers():
    view = View(0.1, 0.2, 0.3, 0.4, True, 0.5, 0.6, 0.7)
    assert view.numbers() == (0.1, 0.2, 0.3, 0.4, 1.0, 0.5, 0.6, 0.7)
    assert View(0, 0, 1, 1, flip=False).numbers() == (0, 0, 1, 1, 0, 1, 1, 1)
    assert len(fields(View)) == len(view.numbers()) == VIEW_NUMBERS
    assert View.of(view.numbers()) == view
    with pytest.raises(ValueError, match="expected 8"):
        View.of(view.numbers()[:5])


def test_a_row_of_a_store_makes_a_view_of_plain_numbers():
    row = np.array([[0.25, 0.0, 0.75, 1.0, 1.0, 1.5, 1.0, 0.1]], dtype=np.float32)[0]
    view = View.of(row)
    assert view == View(0.25, 0.0, 0.75, 1.0, True, 1.5, 1.0, float(np.float32(0.1)))
    assert [type(value) for value in astuple(view)] == [float, float, float, float, bool, float, float, float]
    assert all(type(value) is float for value in view.numbers())


def test_a_view_through_float32_and_back_stays_the_same_and_gives_the_same_pixels():
    pixels = picture(120, 90)
    for view in draws(COLOURS, count=30):
        kept = stored(view)
        assert stored(kept) == kept and View.of(np.array(kept.numbers(), dtype=np.float32)) == kept
        assert kept.numbers() == pytest.approx(view.numbers(), abs=1e-6) and kept.flip == view.flip
        first = apply_view(pixels, kept, 48)
        again = View.of(np.array(view.numbers(), dtype=np.float32))
        np.testing.assert_array_equal(apply_view(pixels.copy(), again, 48), first)
    assert stored(WHOLE) == WHOLE


def test_a_stored_view_lies_within_the_picture_where_rounding_left_it():
    beyond = View(-1e-12, 0.0, 1 + 1e-12, 1 + 1e-6, False, 2.0, 0.0, 1.0)
    assert stored(beyond) == View(0.0, 0.0, 1.0, 1.0, False, 2.0, 0.0, 1.0)
    for config in CONFIGS:
        for view in map(stored, draws(config, count=300)):
            assert 0 <= view.left < view.right <= 1 and 0 <= view.top < view.bottom <= 1
    narrow = stored(View(1 - 2e-10, 0.5, 1 - 1e-10, 0.5 + 1e-10, False))  # no wider than nothing in float32
    assert apply_view(picture(), narrow, 16).shape == (16, 16, 3)
