"""Stored rows find their pictures by name in any copy of the data, and a file that does not fit is refused."""

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image
from runs import files_no_larger_than

from cliplet.data.places import tar_member
from cliplet.data.quarantine import Quarantine
from cliplet.data.records import ImageText, Records
from cliplet.errors import DataError, ModelError
from cliplet.evaluation.embeddings import evaluation_of, is_embeddings, open_embeddings, save_embeddings
from cliplet.evaluation.measure import assembled
from cliplet.evaluation.sources import measured

N, D = 12, 8


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def records():
    """Twelve pictures, with one to three captions each."""
    return [
        ImageText(
            f"/data/photos/{number}.jpg", tuple(f"caption {c} of {number}" for c in range(1 + number % 3)), "test"
        )
        for number in range(N)
    ]


@pytest.fixture
def evaluation(records):
    random = np.random.default_rng(0)
    image_ND = random.normal(size=(N, D))
    owners = np.repeat(np.arange(N), [len(record.captions) for record in records])
    text_MD = image_ND[owners] + random.normal(0, 0.9, (len(owners), D))
    return assembled(records, unit(image_ND), unit(text_MD), {})


@pytest.fixture
def file(evaluation, tmp_path):
    save_embeddings(tmp_path / "made" / "a.npz", evaluation, {"model": "runs/a/model"})
    return tmp_path / "made" / "a.npz"


@pytest.fixture
def refused():
    """Opens what must be refused; returns what was said."""

    def run(source):
        with pytest.raises(DataError) as caught:
            open_embeddings(source)
        return str(caught.value)

    return run


def saved(path, **arrays):
    np.savez(path, **arrays)
    return path


def the_same(found, expected):
    assert found.metrics == expected.metrics
    assert np.array_equal(found.image_rank_N, expected.image_rank_N)
    assert np.array_equal(found.text_rank_M, expected.text_rank_M)


def test_what_was_saved_is_what_is_opened_bit_for_bit(file, evaluation, records):
    assert 20 < evaluation.metrics["text_to_image_R@1"] < 95  # neither trivial nor lost, so that a shift would show
    stored = open_embeddings(file)
    assert np.array_equal(stored.image_ND, evaluation.image_ND) and np.array_equal(stored.text_MD, evaluation.text_MD)
    assert stored.pictures[3] == "3.jpg" and stored.captions == tuple(evaluation.captions)
    assert stored.facts == {"model": "runs/a/model"} and stored.rescaled == 0
    found = evaluation_of(stored, records)
    the_same(found, evaluation)
    assert found.records == records and found.captions == evaluation.captions
    assert [path.name for path in file.parent.iterdir()] == ["a.npz"]


def test_any_program_reads_the_file(file, evaluation):
    with np.load(file, allow_pickle=False) as arrays:
        assert arrays["image"].dtype == np.float32 and arrays["image"].shape == (N, D)
        assert arrays["caption_image"].tolist() == evaluation.caption_image_M.tolist()
        said = json.loads(arrays["description"].tobytes())
    assert said["format"] == "cliplet-embeddings" and said["captions"] == evaluation.captions


def test_rows_find_their_pictures_in_another_order_folder_and_form(file, evaluation, records):
    order = np.random.default_rng(1).permutation(N)
    moved = [
        ImageText(
            tar_member("/elsewhere/0.tar", f"x/{number}.jpg", 512, 9) if number % 2 else f"/other/{number}.jpg",
            tuple(reversed(records[number].captions)),
        )
        for number in order
    ]
    for data in (moved, Records.of(moved)):
        found = evaluation_of(open_embeddings(file), data)
        assert np.array_equal(found.image_rank_N, evaluation.image_rank_N[order])
        for name, value in evaluation.metrics.items():
            assert found.metrics[name] == pytest.approx(value, abs=1e-12)
        for caption, row in zip(found.captions, found.text_MD, strict=True):
            assert np.array_equal(row, evaluation.text_MD[evaluation.captions.index(caption)])


def test_rows_beyond_the_data_are_left_out_and_counted(file, evaluation, records):
    said = []
    fewer = [records[0], ImageText(records[5].image, records[5].captions[:2])]
    found = evaluation_of(open_embeddings(file), fewer, tell=said.append)
    assert found.metrics["images"] == 2 and found.metrics["captions"] == 3
    own = evaluation.caption_image_M.tolist().index(5)
    assert np.array_equal(found.text_MD[1:], evaluation.text_MD[own : own + 2])
    assert len(said) == 1 and "10 pictures and 21 captions more than this data" in said[0]


def test_a_picture_or_caption_without_a_row_is_named(file, records):
    stored = open_embeddings(file)
    with pytest.raises(DataError, match=r"no row for the picture new\.jpg"):
        evaluation_of(stored, [*records, ImageText("a/new.jpg", ("caption 0 of 1",))])
    with pytest.raises(DataError, match=r"no row for a caption of 4\.jpg: 'another'"):
        evaluation_of(stored, [*records[:4], ImageText("4.jpg", ("caption 0 of 4", "another"))])
    with pytest.raises(DataError, match=r"no row for the picture 4\.jpg"):  # one row is not two pictures
        evaluation_of(stored, [records[4], records[4]])


def test_pictures_of_one_name_are_told_apart_by_their_captions(tmp_path):
    records = [
        ImageText("cats/1.jpg", ("a cat",)),
        ImageText("dogs/1.jpg", ("a dog", "a cat")),
        ImageText("cars/1.jpg", ("a car",)),
    ]
    image_ND = np.eye(3, D, dtype=np.float32)
    saved_as = assembled(records, image_ND, image_ND[[0, 1, 1, 2]], {})
    save_embeddings(tmp_path / "a.npz", saved_as, {})
    for order in ([2, 1, 0], [1, 0, 2], [0, 2, 1]):
        found = evaluation_of(open_embeddings(tmp_path / "a.npz"), [records[row] for row in order])
        assert np.array_equal(found.image_ND, image_ND[order])


def test_names_and_captions_of_any_letters_survive(tmp_path):
    records = [ImageText("é/日本 \udc80.jpg", ("half \ud800 of a letter", "日本 🚢")), ImageText('"\n.jpg', ("", " "))]
    rows = np.eye(4, D, dtype=np.float32)
    save_embeddings(tmp_path / "a.npz", assembled(records, rows[:2], rows, {}), {"note": "é"})
    stored = open_embeddings(tmp_path / "a.npz")
    assert stored.facts == {"note": "é"}
    assert evaluation_of(stored, records).captions == [caption for record in records for caption in record.captions]


def test_pictures_that_could_not_be_read_are_left_out_again(evaluation, records, tmp_path):
    text_MD, kept = evaluation.text_MD, [row for row in range(N) if row not in (2, 7)]
    partial = assembled(records, evaluation.image_ND, text_MD, {2: "torn", 7: "torn"})
    save_embeddings(tmp_path / "a.npz", partial, {}, records)
    stored = open_embeddings(tmp_path / "a.npz")
    assert stored.left_out == ("2.jpg", "7.jpg")
    quarantine = Quarantine()
    found = evaluation_of(stored, records, quarantine)
    the_same(found, partial)
    assert found.records == [records[row] for row in kept]
    assert [entry["where"] for entry in quarantine.entries()] == [records[2].image, records[7].image]
    with pytest.raises(DataError, match=r"2\.jpg: could not be read when"):
        evaluation_of(stored, records)
    the_same(evaluation_of(stored, found.records), partial)


@pytest.mark.parametrize(
    "names", [("image", "text"), ("image_features", "text_features"), ("image_embeddings", "text_embeddings")]
)
def test_files_of_other_programs_are_in_the_datas_own_order(tmp_path, evaluation, records, names):
    file = saved(tmp_path / "b.npz", **dict(zip(names, (evaluation.image_ND, evaluation.text_MD), strict=True)))
    the_same(evaluation_of(open_embeddings(file), records), evaluation)
    with pytest.raises(DataError, match=r"12 pictures and 24 captions, but the data has 11 pictures and 21 captions"):
        evaluation_of(open_embeddings(file), records[:-1])


def test_two_npy_files(tmp_path, evaluation, records):
    images, texts = tmp_path / "images.npy", tmp_path / "texts.npy"
    np.save(images, evaluation.image_ND)
    np.save(texts, evaluation.text_MD)
    the_same(measured(f"{images}+{texts}", records), evaluation)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rows_of_any_length_and_precision_are_made_unit(tmp_path, evaluation, records, dtype, capsys):
    scale = np.random.default_rng(2).uniform(0.5, 30, (N, 1))
    file = saved(tmp_path / "b.npz", image=(evaluation.image_ND * scale).astype(dtype), text=evaluation.text_MD)
    found = measured(file, records)
    assert np.linalg.norm(found.image_ND, axis=1) == pytest.approx(1, abs=1e-6)
    assert found.image_ND == pytest.approx(evaluation.image_ND, abs=2e-3 if dtype == np.float16 else 1e-6)
    printed = capsys.readouterr()
    assert "12 rows not of unit length" in printed.err and printed.out == ""


def test_rows_that_are_no_directions_are_named(tmp_path, evaluation, refused):
    for value, what in ((np.nan, "not finite"), (np.inf, "not finite"), (0, "all zeros")):
        broken = evaluation.text_MD.copy()
        broken[17] = value
        broken[20] = value
        said = refused(saved(tmp_path / "b.npz", image=evaluation.image_ND, text=broken))
        assert f"text: row 17 is {what} (2 such rows)" in said


def test_arrays_that_do_not_fit_are_refused(tmp_path, evaluation, refused):
    image_ND, text_MD = evaluation.image_ND, evaluation.text_MD

    def said(**arrays):
        return refused(saved(tmp_path / "b.npz", **arrays))

    assert "pictures have 8 numbers a row, captions 7" in said(image=image_ND, text=text_MD[:, :7])
    assert "its shape is (96,)" in said(image=image_ND.ravel(), text=text_MD)
    assert "its shape is (0, 8)" in said(image=image_ND[:0], text=text_MD)
    assert "is of type complex64" in said(image=image_ND.astype(np.complex64), text=text_MD)
    assert "Python objects are not read" in said(image=image_ND.astype(object), text=text_MD)
    assert "its arrays are image, words" in said(image=image_ND, words=text_MD)
    assert "its arrays are none" in said()


def test_a_torn_or_changed_file_never_opens_as_another(file, refused, tmp_path):
    data = file.read_bytes()
    torn = tmp_path / "torn.npz"
    for end in (0, 1, 100, len(data) // 2, len(data) - 1):
        torn.write_bytes(data[:end])
        assert f"{torn}: is no NumPy .npz file, or damaged" in refused(torn)
    expected = open_embeddings(file)
    for place in np.random.default_rng(3).integers(0, len(data), 200):
        torn.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        try:
            found = open_embeddings(torn)
        except DataError:
            continue
        assert np.array_equal(found.image_ND, expected.image_ND) and np.array_equal(found.text_MD, expected.text_MD)
        assert found.pictures == expected.pictures and found.captions == expected.captions


def test_files_of_another_kind_are_refused(tmp_path, refused, evaluation):
    assert f"{tmp_path / 'none.npz'}: no such file" in refused(tmp_path / "none.npz")
    assert "no such file" in refused(f"{tmp_path}/a.npy+{tmp_path}/b.npy")
    np.save(tmp_path / "one.npy", evaluation.image_ND)
    (tmp_path / "one.npz").write_bytes((tmp_path / "one.npy").read_bytes())
    assert "is no NumPy .npz file" in refused(tmp_path / "one.npz")
    Image.new("RGB", (9, 9)).save(tmp_path / "picture.png")
    (tmp_path / "picture.npz").write_bytes((tmp_path / "picture.png").read_bytes())
    assert "is no NumPy .npz file" in refused(tmp_path / "picture.npz")
    with zipfile.ZipFile(tmp_path / "words.npz", "w") as archive:
        archive.writestr("image.npy", "no array")
        archive.writestr("text.npy", "nor here")
    assert "image must be rows of numbers" in refused(tmp_path / "words.npz")
    saved(tmp_path / "pair.npz", image=evaluation.image_ND, text=evaluation.text_MD)
    (tmp_path / "pair.npy").write_bytes((tmp_path / "pair.npz").read_bytes())
    assert "is no NumPy .npy file" in refused(f"{tmp_path}/pair.npy+{tmp_path}/one.npy")


def test_a_description_that_does_not_fit_its_rows_is_refused(file, refused, tmp_path):
    with np.load(file) as opened:
        arrays = dict(opened)
    said = json.loads(arrays["description"].tobytes())

    def with_(description, **others):
        data = np.frombuffer(json.dumps(description).encode(), dtype=np.uint8)
        return refused(saved(tmp_path / "b.npz", **{**arrays, "description": data, **others}))

    assert "is of form 'cliplet-embeddings' 2" in with_({**said, "format_version": 2})
    assert "is of form 'other' 1" in with_({**said, "format": "other"})
    assert "do not fit each other" in with_({**said, "pictures": said["pictures"][1:]})
    assert "do not fit each other" in with_({**said, "captions": [1] * len(said["captions"])})
    assert "lacks names" in with_({**said, "pictures": None})
    assert "do not fit each other" in with_(said, caption_image=arrays["caption_image"] + N)
    assert "do not fit each other" in with_(said, caption_image=arrays["caption_image"][1:])
    assert "do not fit each other" in with_(said, caption_image=arrays["caption_image"].astype(float))
    assert "description cannot be read" in with_(7)
    del arrays["caption_image"]
    assert "lacks names, captions, their owners" in with_(said)


def test_a_failed_write_leaves_the_old_file(file, evaluation):
    old = file.read_bytes()

    with files_no_larger_than(100), pytest.raises(OSError, match="too large"):
        save_embeddings(file, evaluation, {"model": "new"})
    assert file.read_bytes() == old and len(list(file.parent.iterdir())) == 1


def test_objects_in_a_file_are_never_made(tmp_path, refused, evaluation, records):
    buffer = io.BytesIO()

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "made"), "w"))

    np.save(buffer, np.array([Evil()], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(tmp_path / "evil.npz", "w") as archive:
        archive.writestr("image.npy", buffer.getvalue())
    assert "Python objects are not read" in refused(tmp_path / "evil.npz")
    saved(tmp_path / "more.npz", image=evaluation.image_ND, text=evaluation.text_MD)
    with zipfile.ZipFile(tmp_path / "more.npz", "a") as archive:
        archive.writestr("paths.npy", buffer.getvalue())
    the_same(measured(tmp_path / "more.npz", records), evaluation)  # what else is in the file is not looked at
    assert not (tmp_path / "made").exists()


def test_what_is_no_name_of_embeddings_is_opened_as_a_model(tmp_path, records):
    assert is_embeddings("a.npz") and is_embeddings(tmp_path / "A.NPZ") and is_embeddings("x/a.npy+y/b.npy")
    for name in ("runs/demo/model", "open_clip:ViT-B-32/openai", "a.npy", "a+b", "a.npz/model", "a.npy+b"):
        assert not is_embeddings(name)
    with pytest.raises(ModelError, match="no such model folder"):
        measured(tmp_path / "none", records)


def test_a_picture_that_could_not_be_read_beside_one_of_its_name(tmp_path):
    """Of two pictures of one name one could not be read: the file is no good for other data only."""
    records = [ImageText("a/1.jpg", ("a cat",)), ImageText("b/1.jpg", ("a dog",)), ImageText("b/2.jpg", ("a cow",))]
    rows = np.eye(3, dtype=np.float32)
    found = assembled(records, rows, rows, {0: "torn"})
    save_embeddings(tmp_path / "kept.npz", found, {}, records)
    again = measured(tmp_path / "kept.npz", records, Quarantine())
    assert [record.image for record in again.records] == ["b/1.jpg", "b/2.jpg"] and again.metrics == found.metrics
