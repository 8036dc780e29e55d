"""Pictures of every mode and every way to be broken: the right colours, or an ImageError that names the file."""

import contextlib
import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from cliplet.data.images import MAX_BYTES, decode, decode_image, load_image
from cliplet.errors import DataError, ImageError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encoded(image, form, **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def noise(width=32, height=24, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def smooth(width, height):
    """A picture that JPEG keeps well: two ramps and a constant."""
    across = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    down = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    return Image.fromarray(np.stack([across, down, np.full_like(across, 80)], -1).astype(np.uint8))


# What is refused


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ImageError, match=r"gone\.jpg: no such file"):
        load_image(tmp_path / "gone.jpg")


def test_folder_is_no_picture(tmp_path):
    with pytest.raises(ImageError, match="is a folder"):
        load_image(tmp_path)


def test_zero_bytes(tmp_path):
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(ImageError, match=r"empty\.jpg: the file is empty"):
        load_image(tmp_path / "empty.jpg")
    with pytest.raises(ImageError, match="given as bytes"):
        load_image(b"")


def test_text_is_no_picture(tmp_path):
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    with pytest.raises(ImageError, match=r"page\.jpg: not a picture"):
        load_image(tmp_path / "page.jpg")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated_jpeg_is_refused_and_not_half_grey(tmp_path, share):
    whole = encoded(Image.fromarray(noise(64, 64)), "JPEG")
    file = tmp_path / "cut.jpg"
    file.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ImageError, match=r"cut\.jpg"):
        load_image(file)


def test_an_image_error_is_a_data_error():
    with pytest.raises(DataError):
        load_image(b"nothing")


def test_one_pixel_is_refused_and_the_file_is_named(tmp_path):
    file = tmp_path / "pixel.gif"
    Image.new("RGB", (1, 1)).save(file)
    with pytest.raises(ImageError, match=r"pixel\.gif: 1x1 pixels"):
        load_image(file)
    with pytest.raises(ImageError, match="100x1"):
        load_image(Image.new("RGB", (100, 1)))
    assert load_image(Image.new("RGB", (2, 2))).size == (2, 2)


def test_bomb_is_refused_by_its_header_alone(tmp_path):
    """60,000 x 60,000 pixels would take 10.8 GB; the file holds no pixel at all, so decoding would say otherwise."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    file = tmp_path / "bomb.png"
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")))
    with pytest.raises(ImageError, match=r"bomb\.png: 60000x60000 pixels, over the limit"):
        load_image(file)


def test_a_file_over_the_limit_is_not_read(tmp_path):
    file = tmp_path / "huge.jpg"
    with file.open("wb") as stream:
        stream.truncate(MAX_BYTES + 1)  # sparse: it takes no room
    with pytest.raises(ImageError, match="over the limit of 512 MB"):
        load_image(file)


@pytest.mark.parametrize("name", ["a\0b.jpg", "x" * 5000 + ".jpg"])
def test_impossible_names(name):
    with pytest.raises(ImageError):
        load_image(name)


@pytest.mark.parametrize("thing", [None, 7, ["a.jpg"], object()])
def test_other_things_are_refused(thing):
    with pytest.raises(ImageError):
        load_image(thing)


# Modes and kinds


def test_png_named_jpg_is_read(tmp_path):
    pixels = noise()
    Image.fromarray(pixels).save(tmp_path / "wrong.jpg", "PNG")
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "wrong.jpg")), pixels)
    np.testing.assert_array_equal(np.asarray(load_image(str(tmp_path / "wrong.jpg"))), pixels)


def test_bytes_are_read():
    pixels = noise()
    image = load_image(encoded(Image.fromarray(pixels), "PNG"))
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize("colour", [RED, GREEN, BLUE, WHITE, (0, 0, 0), (200, 120, 40)])
def test_cmyk_jpeg_has_the_colours_of_the_rgb_one(colour):
    image = Image.new("RGB", (32, 32), colour).convert("CMYK")
    decoded = np.asarray(load_image(encoded(image, "JPEG", quality=95))).astype(int)
    assert np.abs(decoded - colour).max() <= 6


def test_16_bit_png_keeps_its_upper_byte():
    values = np.array([[0, 255, 256, 40_000], [32_768, 65_279, 65_280, 65_535]], np.uint16)
    data = encoded(Image.fromarray(values), "PNG")
    assert Image.open(io.BytesIO(data)).mode.startswith("I")
    np.testing.assert_array_equal(np.asarray(load_image(data)), (values >> 8)[..., None].repeat(3, 2))


def test_32_bit_integers_of_16_bits_are_scaled_likewise():
    values = np.array([[0, 257, 25_700], [32_896, 51_400, 65_535]], np.int32)
    image = Image.fromarray(values)
    assert image.mode == "I"
    np.testing.assert_array_equal(np.asarray(load_image(image))[..., 0], [[0, 1, 100], [128, 200, 255]])


def test_32_bit_integers_of_8_bits_stay_as_they_are():
    for values in ([[0, 1], [1, 0]], [[0, 255], [17, 200]]):
        np.testing.assert_array_equal(
            np.asarray(load_image(Image.fromarray(np.array(values, np.int32))))[..., 0], values
        )


def test_float_pictures():
    fractions = Image.fromarray(np.array([[0, 0.5], [1, np.nan]], np.float32))
    assert fractions.mode == "F"
    np.testing.assert_array_equal(np.asarray(load_image(fractions))[..., 1], [[0, 128], [255, 0]])
    bytes_ = Image.fromarray(np.array([[0, 17], [255, -3]], np.float32))
    np.testing.assert_array_equal(np.asarray(load_image(bytes_))[..., 1], [[0, 17], [255, 0]])


def test_rgba_is_laid_on_white():
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[0] = (*RED, 255)
    rgba[1] = (*RED, 0)
    rgba[2] = (*BLUE, 127)
    pixels = np.asarray(load_image(encoded(Image.fromarray(rgba), "PNG"))).astype(int)
    assert tuple(pixels[0, 0]) == RED
    assert tuple(pixels[1, 0]) == WHITE
    assert np.abs(pixels[2, 0] - (128, 128, 255)).max() <= 1


def test_palette_with_transparency_is_laid_on_white():
    image = Image.new("P", (8, 8), 0)
    image.putpalette([*RED, *BLUE, *GREEN])
    image.paste(1, (0, 0, 8, 4))
    pixels = np.asarray(load_image(encoded(image, "PNG", transparency=0)))
    assert tuple(pixels[0, 0]) == BLUE
    assert tuple(pixels[7, 7]) == WHITE
    assert tuple(np.asarray(load_image(encoded(image, "PNG")))[7, 7]) == RED


@pytest.mark.parametrize(("mode", "clear", "other"), [("RGB", RED, BLUE), ("L", 10, 200)])
def test_a_png_whose_one_colour_is_transparent(mode, clear, other):
    image = Image.new(mode, (8, 8), clear)
    image.paste(other, (0, 0, 8, 4))
    pixels = np.asarray(load_image(encoded(image, "PNG", transparency=clear)))
    assert tuple(pixels[7, 7]) == WHITE
    assert tuple(pixels[0, 0]) == tuple(np.broadcast_to(other, 3))


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "LAB", "I;16"]
)
def test_every_mode_becomes_rgb(mode):
    image = load_image(Image.new(mode, (5, 7)))
    assert (image.mode, image.size) == ("RGB", (5, 7))


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(form):
    frames = [Image.new("RGB", (16, 12), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if form == "WEBP" else {}
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:], duration=50, **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert (np.asarray(load_image(data)) == RED).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    """The tag says how the stored rows and columns lie; a picture stored by the inverse comes out as it was."""
    upright = Image.fromarray(noise(6, 4))
    stored = {
        1: lambda i: i,
        2: lambda i: i.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda i: i.transpose(Image.Transpose.ROTATE_180),
        4: lambda i: i.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda i: i.transpose(Image.Transpose.TRANSPOSE),
        6: lambda i: i.transpose(Image.Transpose.ROTATE_90),
        7: lambda i: i.transpose(Image.Transpose.TRANSVERSE),
        8: lambda i: i.transpose(Image.Transpose.ROTATE_270),
    }[orientation](upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = load_image(encoded(stored, "PNG", exif=exif))
    np.testing.assert_array_equal(np.asarray(image), np.asarray(upright))


def test_damaged_exif_costs_neither_the_picture_nor_a_line_of_noise(tmp_path, run_python):
    damaged = b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12\0\x03\0\xff\xff\xff\0\x06"
    (tmp_path / "odd.jpg").write_bytes(encoded(Image.fromarray(noise(16, 16)), "JPEG", exif=damaged))
    with pytest.warns(UserWarning, match="Corrupt EXIF"):  # Pillow does warn, and pytest overrules what is ignored
        assert load_image(tmp_path / "odd.jpg").size == (16, 16)
    done = run_python("from cliplet.data.images import load_image; print(load_image('odd.jpg').size)", tmp_path)
    assert (done.stdout, done.stderr) == ("(16, 16)\n", "")


# The fast path


@pytest.mark.parametrize(("width", "height"), [(1600, 1200), (801, 1203), (400, 3000), (300, 200)])
def test_reduced_decoding_keeps_the_side_and_the_picture(width, height):
    data = encoded(smooth(width, height), "JPEG", quality=95)
    whole, reduced = load_image(data), load_image(data, smallest_side=100)
    assert whole.size == (width, height)
    assert 100 <= min(reduced.size) <= min(width, height)
    if min(width, height) >= 800:
        assert min(reduced.size) <= min(width, height) / 7, "the fast path was not taken"
    small = [np.asarray(i.resize((50, 50), Image.Resampling.BICUBIC)).astype(int) for i in (whole, reduced)]
    assert np.abs(small[0] - small[1]).max() <= 4


def test_reduced_decoding_leaves_the_callers_picture_whole():
    opened = Image.open(io.BytesIO(encoded(smooth(800, 800), "JPEG")))
    load_image(opened, smallest_side=50)
    assert opened.size == (800, 800)


def test_the_result_is_the_callers_own():
    mine = Image.new("RGB", (8, 8), RED)
    load_image(mine).putpixel((0, 0), BLUE)
    assert mine.getpixel((0, 0)) == RED


# Arrays


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (5, 7, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
def test_accepted_arrays(shape, dtype):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    if shape[-1] == 4 and len(shape) == 3:
        pixels[..., 3] = 255
    array = pixels if dtype == np.uint8 else (pixels / 255).astype(dtype)
    expected = pixels[..., :3] if pixels.ndim == 3 else pixels[..., None]
    np.testing.assert_array_equal(np.asarray(load_image(array)), np.broadcast_to(expected, (5, 7, 3)))


def test_an_arrays_alpha_is_laid_on_white():
    assert load_image(np.zeros((4, 4, 4), np.uint8)).getpixel((0, 0)) == WHITE


def test_views_of_arrays_are_read_right():
    pixels = noise()
    np.testing.assert_array_equal(np.asarray(load_image(pixels[::-2, ::2])), pixels[::-2, ::2])


@pytest.mark.parametrize("shape", [(), (5,), (5, 7, 2), (5, 7, 5), (3, 5, 7), (1, 5, 7, 3)])
def test_arrays_of_other_shapes(shape):
    with pytest.raises(ImageError, match="expected \\(H, W\\)"):
        load_image(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("shape", [(0, 0, 3), (0, 5), (5, 0, 3), (1, 1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_arrays_with_nothing_in_them(shape, dtype):
    with pytest.raises(ImageError):
        load_image(np.zeros(shape, dtype))


@pytest.mark.parametrize("dtype", [bool, np.int8, np.int16, np.uint16, np.int64, np.complex64, "U1", object])
def test_arrays_of_other_types(dtype):
    with pytest.raises(ImageError, match="expected uint8, or floats"):
        load_image(np.zeros((5, 7, 3), dtype))


@pytest.mark.parametrize("bad", [1.01, 255.0, -0.01, np.nan, np.inf, -np.inf])
def test_floats_outside_0_to_1(bad):
    array = np.full((5, 7, 3), 0.5)
    array[2, 3, 1] = bad
    with pytest.raises(ImageError, match="from 0 to 1"):
        load_image(array)


# Faults and threads


def seeds():
    small = Image.fromarray(noise(24, 18))
    frames = [Image.fromarray(noise(24, 18, seed=seed)) for seed in (1, 2)]
    exif = Image.Exif()
    exif[0x0112] = 6
    return [
        encoded(small, "JPEG", exif=exif),
        encoded(small, "JPEG", progressive=True),
        encoded(small, "PNG"),
        encoded(Image.fromarray(noise(24, 18, 4)), "PNG", exif=exif),
        encoded(small, "GIF", save_all=True, append_images=frames),
        encoded(small, "WEBP", save_all=True, append_images=frames),
    ]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_corrupted_bytes_give_a_picture_or_an_image_error():
    """300 files with one to twenty bytes changed, the first bytes (headers) more often than the rest."""
    originals, outcomes = seeds(), {"picture": 0, "error": 0}
    for number in range(300):
        random = np.random.default_rng(number)
        data = bytearray(originals[number % len(originals)])
        reach = len(data) if number % 2 else min(len(data), 64)
        for place in random.integers(reach, size=random.integers(1, 21)):
            data[place] = random.integers(256)
        try:
            image = load_image(bytes(data), smallest_side=8 if number % 3 else None)
        except ImageError:
            outcomes["error"] += 1
        else:
            assert image.mode == "RGB" and min(image.size) >= 2
            assert np.asarray(image).shape == (image.height, image.width, 3)
            outcomes["picture"] += 1
    assert min(outcomes.values()) > 30, outcomes  # both ways are met, else the test shows nothing


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_cut_of_a_file_gives_a_picture_or_an_image_error():
    for original in seeds():
        for length in range(0, len(original), max(1, len(original) // 40)):
            with contextlib.suppress(ImageError):
                assert load_image(original[:length]).mode == "RGB"


def test_threads_leave_the_programs_warnings_as_they_were():
    data = encoded(Image.fromarray(noise(64, 64)), "JPEG")
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(load_image, [data] * 1000))
    assert list(warnings.filters) == before


def test_no_file_stays_open(tmp_path):
    file = tmp_path / "cut.jpg"
    file.write_bytes(encoded(Image.fromarray(noise(64, 64)), "JPEG")[:900])
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        pytest.skip("counting open files takes Linux's /proc")
    before = len(list(descriptors.iterdir()))
    for _ in range(20):
        with pytest.raises(ImageError):
            load_image(file)
    assert len(list(descriptors.iterdir())) <= before


def test_postscript_is_refused_and_never_handed_to_an_interpreter():
    with pytest.raises(ImageError, match="not a picture"):
        load_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\nshowpage\n%%EOF\n")


# The fast way for JPEGs is Pillow's, only faster


def pillow_pixels(data, smallest_side=None):
    """What Pillow alone makes of a JPEG: reduced by a power of two, upright, RGB."""
    image = Image.open(io.BytesIO(data))
    if smallest_side:
        factor = next((f for f in (8, 4, 2) if min(image.size) >= f * smallest_side), 1)
        image.draft(None, (image.width // factor, image.height // factor))
    return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


@pytest.mark.parametrize(
    "options", [{}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True}, {"quality": 20}]
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("smallest_side", [None, 200, 60, 20, 5])
def test_a_jpeg_is_what_pillow_makes_of_it(mode, options, smallest_side):
    if mode != "RGB":
        options = {key: value for key, value in options.items() if key != "subsampling"}
    data = encoded(smooth(333, 217).convert(mode), "JPEG", **options)
    np.testing.assert_array_equal(decode_image(data, smallest_side), pillow_pixels(data, smallest_side))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("smallest_side", [None, 50])
def test_every_orientation_is_pillows_and_the_size_is_upright(orientation, smallest_side):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(smooth(331, 217), "JPEG", exif=exif)
    decoded = decode(data, smallest_side)
    np.testing.assert_array_equal(decoded.array(), pillow_pixels(data, smallest_side))
    assert (decoded.width, decoded.height) == ((217, 331) if orientation >= 5 else (331, 217))
    assert decoded.reduction == (4 if smallest_side else 1)


def test_orientation_after_other_metadata_is_found():
    """XMP and a colour profile of 60 kB before the EXIF data, as some programs write them."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(smooth(60, 40), "JPEG", exif=exif)
    start = data.index(b"\xff\xe1")
    other = b"\xff\xe1" + (60_002).to_bytes(2, "big") + b"http://ns.adobe.com/xap/1.0/\0".ljust(60_000, b" ")
    assert decode_image(data[:start] + other + data[start:]).shape == (60, 40, 3)


@pytest.mark.parametrize("kind", ["png", "cmyk"])
def test_sizes_by_the_slow_way(kind):
    if kind == "png":
        assert decode(encoded(smooth(331, 217), "PNG"), 20)[1:] == (331, 217, 1)
    else:
        exif = Image.Exif()
        exif[0x0112] = 6
        decoded = decode(encoded(smooth(331, 217).convert("CMYK"), "JPEG", exif=exif), 50)
        assert decoded[1:] == (217, 331, 4) and decoded.array().shape == (83, 55, 3)


def test_a_jpeg_cut_anywhere_is_refused():
    """In full, reduced, and in the middle of its metadata; only the end mark's last byte may be missing."""
    data = encoded(Image.fromarray(noise(64, 48)), "JPEG")
    for length in [*range(0, len(data) - 2, 7), len(data) - 2]:
        for smallest_side in (None, 8):
            with pytest.raises(ImageError):
                decode_image(data[:length], smallest_side)


def test_a_damaged_jpeg_never_crashes():
    """Random bytes overwritten: pixels or an ImageError, and nothing else."""
    random = np.random.default_rng(0)
    data = encoded(smooth(64, 48), "JPEG")
    for _ in range(300):
        broken = bytearray(data)
        for place in random.integers(2, len(data), 3):
            broken[place] = random.integers(256)
        with contextlib.suppress(ImageError):
            assert decode_image(bytes(broken)).ndim == 3


def test_a_jpeg_with_something_after_its_end_is_read():
    data = encoded(smooth(64, 48), "JPEG")
    np.testing.assert_array_equal(decode_image(data + b"trailing bytes of a camera" * 100), decode_image(data))


def test_the_name_given_is_the_one_in_messages():
    with pytest.raises(ImageError, match=r"^shard\.tar\?x: not a picture"):
        decode(b"no picture", name="shard.tar?x")
