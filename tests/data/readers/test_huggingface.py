"""Hugging Face data sets in every form they lie about in; each picture is read back and compared."""

import errno
import io
import json
import os
import shutil
import sys
import time
import tracemalloc
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cliplet.data.images import load_image
from cliplet.data.readers import hub, huggingface, read_source
from cliplet.errors import DataError

STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The cache of `datasets`, away from the home folder."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    datasets.disable_progress_bars()
    yield folder
    datasets.enable_progress_bars()


def colour(number):
    """A colour for each number, as a picture is made of it and as it is found again."""
    return (number % 256, number // 256, 77)


def png(number):
    stream = io.BytesIO()
    Image.new("RGB", (3, 2), colour(number)).save(stream, "PNG")
    return stream.getvalue()


def cell(number):
    return {"bytes": png(number), "path": f"{number}.png"}


def made(numbers, **columns):
    """A Dataset of pictures and captions `number 0`, `number 1`, ..."""
    columns = columns or {"caption": [f"number {number}" for number in numbers]}
    table = {"image": [cell(number) for number in numbers], **columns}
    return datasets.Dataset.from_dict(table).cast_column("image", datasets.Image(decode=True))


def arrow(file, table, write=pa.ipc.new_stream, rows=1000):
    with pa.OSFile(str(file), "wb") as sink, write(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return file


def table(numbers, **columns):
    columns = columns or {"caption": [f"number {number}" for number in numbers]}
    pictures = pa.array([cell(number) for number in numbers], STRUCT)
    return pa.table({"image": pictures, **{name: pa.array(values) for name, values in columns.items()}})


def numbers(source, split=None):
    """The numbers that the pictures were made of, read back from their bytes."""
    records = source.records if split is None else source.records.in_splits([split])
    pixels = [load_image(record.image).getpixel((0, 0)) for record in records]
    assert all(blue == 77 for _, _, blue in pixels)
    return [red + 256 * green for red, green, _ in pixels]


def captions(source):
    return [record.captions for record in source.records]


def check(source, expected):
    """Every picture with its own caption, in order, and nothing wrong."""
    assert not source.problems
    assert numbers(source) == list(expected)
    assert captions(source) == [(f"number {number}",) for number in expected]


# Forms


def test_parquet_file(tmp_path):
    made(range(7)).to_parquet(tmp_path / "a.parquet", batch_size=3)
    source = read_source(tmp_path / "a.parquet")
    check(source, range(7))
    assert source.form == "Hugging Face data set (Parquet)"
    assert set(source.splits) == {""}  # so that train and val are made of it


def test_parquet_file_whose_path_has_signs_of_patterns(tmp_path):
    folder = tmp_path / "a [b] *c?"
    folder.mkdir()
    made(range(3)).to_parquet(folder / "d[1].parquet")
    check(read_source(folder / "d[1].parquet"), range(3))


def test_parquet_written_anew_is_read_anew(tmp_path):
    file = tmp_path / "a.parquet"
    made(range(3)).to_parquet(file)
    read_source(file)
    made(range(3, 6)).to_parquet(file)
    os.utime(file, (1, 1))
    check(read_source(file), range(3, 6))


def test_parquet_by_another_program(tmp_path):
    bytes_only = pa.table({"jpg": [png(1), png(2)], "txt": ["number 1", "number 2"], "json": ["{}", "{}"]})
    pq.write_table(bytes_only, tmp_path / "a.parquet")
    check(read_source(tmp_path / "a.parquet"), [1, 2])


@pytest.mark.parametrize("below", ["", "data"])
def test_folder_of_parquet_with_splits(tmp_path, below):
    folder = tmp_path / "set" / below
    folder.mkdir(parents=True)
    made(range(4)).to_parquet(folder / "train-00000-of-00002.parquet")
    made(range(4, 6)).to_parquet(folder / "train-00001-of-00002.parquet")
    made(range(6, 8)).to_parquet(folder / "validation-00000-of-00001.parquet")
    made(range(8, 9)).to_parquet(folder / "test-00000-of-00001.parquet")
    (tmp_path / "set" / "README.md").write_text("# a set\n")
    source = read_source(tmp_path / "set")
    assert numbers(source, "train") == list(range(6))
    assert numbers(source, "val") == [6, 7]
    assert numbers(source, "test") == [8]
    assert source.splits == {"train": 6, "val": 2, "test": 1}


def test_folder_of_parquet_whose_readme_names_the_splits_and_other_sizes(tmp_path):
    for name, first in (("one", 0), ("two", 3)):
        made(range(first, first + 3)).to_parquet(tmp_path / f"{name}.parquet")
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train, path: one.parquet}\n"
        "  - {split: test, path: two.parquet}\ndataset_info:\n  splits:\n  - {name: train, num_examples: 99}\n---\n"
    )
    source = read_source(tmp_path)
    assert numbers(source, "train") == [0, 1, 2]
    assert numbers(source, "test") == [3, 4, 5]


def test_saved_dataset_of_several_files(tmp_path):
    made(range(10)).save_to_disk(tmp_path / "saved", num_shards=3)
    source = read_source(tmp_path / "saved")
    check(source, range(10))
    assert source.form == "Hugging Face data set (saved to disk)"
    assert len({record.image.partition("?")[0] for record in source.records}) == 3


def test_saved_dataset_of_chosen_rows(tmp_path):
    made(range(10)).select([7, 2, 9]).save_to_disk(tmp_path / "saved")
    check(read_source(tmp_path / "saved"), [7, 2, 9])


def test_saved_dict_of_splits_one_of_them_empty(tmp_path):
    splits = {"train": made(range(4)), "validation": made(range(4, 6)), "test": made([])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    source = read_source(tmp_path / "saved")
    check(source, range(6))
    assert source.splits == {"train": 4, "val": 2}


def test_saved_dataset_that_knows_its_split(tmp_path):
    part = datasets.Dataset(made(range(3)).data, split="validation")
    part.save_to_disk(tmp_path / "saved")
    assert read_source(tmp_path / "saved").splits == {"val": 3}


@pytest.mark.parametrize("write", [pa.ipc.new_stream, pa.ipc.new_file])
@pytest.mark.parametrize("rows", [1, 4, 1000])
def test_arrow_stream_and_file(tmp_path, write, rows):
    file = arrow(tmp_path / "a.arrow", table(range(9)), write, rows)
    source = read_source(file)
    check(source, range(9))
    assert source.form == "Hugging Face data set (Arrow)"


def test_arrow_of_more_rows_than_are_read_at_once(tmp_path):
    pictures = pa.array([{"bytes": png(number % 5), "path": None} for number in range(2500)], STRUCT)
    one_batch = pa.table({"image": pictures, "caption": [f"number {number}" for number in range(2500)]})
    source = read_source(arrow(tmp_path / "a.arrow", one_batch, rows=2500))
    assert captions(source) == [(f"number {number}",) for number in range(2500)]
    assert numbers(source) == [number % 5 for number in range(2500)]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_pictures_as_plain_bytes(tmp_path, kind):
    plain = pa.table(
        {"img": pa.array([png(3), None, b"", png(4)], kind), "caption": [f"number {n}" for n in (3, 0, 0, 4)]}
    )
    source = read_source(arrow(tmp_path / "a.arrow", plain))
    assert numbers(source) == [3, 4]
    assert [problem.where for problem in source.problems] == ["a.arrow row 1", "a.arrow row 2"]


def test_image_feature_wins_over_names(tmp_path):
    columns = {"image": ["a", "b"], "shot": [cell(1), cell(2)], "caption": ["number 1", "number 2"]}
    made_so = datasets.Dataset.from_dict(columns).cast_column("shot", datasets.Image())
    made_so.to_parquet(tmp_path / "a.parquet")
    check(read_source(tmp_path / "a.parquet"), [1, 2])


@pytest.mark.parametrize("name", ["image", "img", "jpg", "picture", "Image"])
def test_image_column_by_name(tmp_path, name):
    named = table(range(2)).rename_columns([name, "caption"])
    check(read_source(arrow(tmp_path / "a.arrow", named)), range(2))


def test_pictures_as_paths_beside_the_file(tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(3):
        (tmp_path / "photos" / f"{number}.png").write_bytes(png(number))
    paths = [f"photos/{number}.png" for number in range(3)]
    texts = [f"number {number}" for number in range(3)]
    pq.write_table(pa.table({"image": paths, "caption": texts}), tmp_path / "a.parquet")
    source = read_source(tmp_path / "a.parquet")
    check(source, range(3))
    assert source.records[0].image == str(tmp_path / "photos" / "0.png")


def test_pictures_as_paths_in_an_image_column(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    paths = [str(tmp_path / f"{number}.png") for number in range(3)]
    columns = {"image": paths, "caption": [f"number {number}" for number in range(3)]}
    made_so = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    made_so.save_to_disk(tmp_path / "saved")
    check(read_source(tmp_path / "saved"), range(3))


def test_relative_paths_to_and_in_a_data_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sub = Path("sub")
    image_folder(sub / "photos", 0, 3, "parquet")
    rows = pa.table({"image": [f"photos/{n}.png" for n in range(3)], "caption": [f"number {n}" for n in range(3)]})
    pq.write_table(rows, sub / "a.parquet")
    arrow(sub / "b.arrow", rows)
    arrow(sub / "c.arrow", table(range(3)))
    for name in ("a.parquet", "b.arrow", "c.arrow", "photos"):
        check(read_source(str(sub / name)), range(3))


# Image folders


def image_folder(folder, first, count, ending="jsonl"):
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"file_name": f"{number}.png", "text": f"number {number}"} for number in range(first, first + count)]
    for number in range(first, first + count):
        (folder / f"{number}.png").write_bytes(png(number))
    file = folder / f"metadata.{ending}"
    if ending == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif ending == "csv":
        file.write_text("file_name,text\n" + "".join(f"{row['file_name']},{row['text']}\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), file)
    return folder


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_image_folder(tmp_path, ending):
    source = read_source(image_folder(tmp_path / "set", 0, 4, ending))
    check(source, range(4))
    assert source.form == "Hugging Face data set (image folder)"
    assert set(source.splits) == {""}


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_image_folder_with_splits(tmp_path, ending):
    image_folder(tmp_path / "set" / "train", 0, 4, ending)
    image_folder(tmp_path / "set" / "validation", 4, 2, ending)
    source = read_source(tmp_path / "set")
    assert numbers(source, "train") == [0, 1, 2, 3]
    assert numbers(source, "val") == [4, 5]
    assert not source.problems


def test_image_folder_with_one_list_at_its_top(tmp_path):
    image_folder(tmp_path / "train", 0, 2)
    image_folder(tmp_path / "test", 2, 1)
    for part in ("train", "test"):
        (tmp_path / part / "metadata.jsonl").unlink()
    rows = [{"file_name": f"{'train' if n < 2 else 'test'}/{n}.png", "text": f"number {n}"} for n in range(3)]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = read_source(tmp_path)
    check(source, range(3))
    assert source.splits == {"train": 2, "test": 1}


def test_image_folder_with_bad_lines(tmp_path):
    image_folder(tmp_path, 0, 3)
    with (tmp_path / "metadata.jsonl").open("a") as stream:
        stream.write('{"file_name": "0.png", "text": 5}\nnot json\n{"text": "no picture"}\n')
        stream.write('{"file_name": "2.png", "text": "again"}\n')
    source = read_source(tmp_path)
    assert captions(source) == [("number 0",), ("number 1",), ("number 2", "again")]
    assert [problem.where for problem in source.problems] == [
        "metadata.jsonl:4 (0.png)",
        "metadata.jsonl:5",
        "metadata.jsonl:6",
    ]


def test_image_folder_without_its_pictures(tmp_path):
    image_folder(tmp_path, 0, 3)
    for file in tmp_path.glob("*.png"):
        file.unlink()
    with pytest.raises(DataError, match=r"pictures are not there, 0\.png"):
        read_source(tmp_path)


# What is a data set


def test_what_is_a_data_set(tmp_path):
    made(range(1)).to_parquet(tmp_path / "A.PARQUET")
    assert huggingface.is_data_set(tmp_path / "A.PARQUET")
    assert not huggingface.is_data_set(tmp_path / "none.parquet")
    (tmp_path / "a.csv").write_text("image,caption\n")
    assert not huggingface.is_data_set(tmp_path / "a.csv")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert not huggingface.is_data_set(empty)


@pytest.mark.parametrize(
    "beside", ["00000.tar", "captions_val2017.json", "dataset_coco.json", "captions.csv"], ids=lambda name: name
)
def test_folder_of_another_form_is_no_data_set(tmp_path, beside):
    (tmp_path / "a.parquet").touch()
    assert huggingface.is_data_set(tmp_path)
    (tmp_path / beside).touch()
    assert not huggingface.is_data_set(tmp_path)


def test_old_repositories_json_is_no_annotation(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.parquet").touch()
    (tmp_path / "dataset_infos.json").touch()
    assert huggingface.is_data_set(tmp_path)


def test_folders_that_img2dataset_wrote_are_read_as_pictures(tmp_path):
    (tmp_path / "00000").mkdir()
    (tmp_path / "00000" / "0.png").write_bytes(png(5))
    (tmp_path / "00000" / "0.txt").write_text("number 5")
    pq.write_table(pa.table({"url": ["http://a/0.png"], "caption": ["number 5"]}), tmp_path / "00000.parquet")
    assert not huggingface.is_data_set(tmp_path)
    check(read_source(tmp_path), [5])


def test_importing_and_looking_needs_no_library(tmp_path, run_python):
    code = (
        "import sys\nfrom pathlib import Path\nfrom cliplet.data.readers import huggingface\n"
        "huggingface.is_data_set(Path('.')), huggingface.is_hub_name('a/b')\n"
        "print([name for name in ('datasets', 'pyarrow', 'torch') if name in sys.modules])"
    )
    (tmp_path / "a.parquet").touch()
    assert run_python(code, tmp_path).stdout.strip() == "[]"


# Columns


@pytest.mark.parametrize(
    "name", ["caption", "captions", "sentence", "sentences", "alt_text", "text", "raw", "title", "Caption", "caption_0"]
)
def test_caption_column_by_name(tmp_path, name):
    columns = {"id": [5, 6], name: ["number 0", "number 1"], "notes": ["x", "y"]}
    check(read_source(arrow(tmp_path / "a.arrow", table(range(2), **columns))), range(2))


@pytest.mark.parametrize(
    "values",
    [
        [["one", "two"], ["three"]],
        [[{"raw": "one"}, {"raw": "two"}], [{"raw": "three"}]],
        [[{"raw": "one", "tokens": ["x"], "sentid": 1}, {"raw": "two"}], [{"raw": "three"}]],
        [{"raw": ["one", "two"]}, {"raw": ["three"]}],
    ],
    ids=["lists", "objects", "objects-with-more", "object-of-lists"],
)
def test_several_captions_in_a_cell(tmp_path, values):
    source = read_source(arrow(tmp_path / "a.arrow", table(range(2), sentences=values)))
    assert captions(source) == [("one", "two"), ("three",)]
    assert numbers(source) == [0, 1]
    assert not source.problems


def test_numbered_captions_are_all_read(tmp_path):
    columns = {f"caption_{n}": [f"a{n}", f"b{n}" if n < 3 else None] for n in range(5)}
    made(range(2), **columns).to_parquet(tmp_path / "a.parquet")
    source = read_source(tmp_path / "a.parquet")
    assert captions(source) == [("a0", "a1", "a2", "a3", "a4"), ("b0", "b1", "b2")]
    assert not source.problems  # fewer captions are no fault


def test_a_caption_and_numbered_ones_are_all_read(tmp_path):
    columns = {"caption_1": ["one", "two"], "caption": ["number 0", "number 1"]}
    source = read_source(arrow(tmp_path / "a.arrow", table(range(2), **columns)))
    assert [record.captions for record in source.records] == [("number 0", "one"), ("number 1", "two")]


def test_numbered_captions_win_over_a_title(tmp_path):
    columns = {"title": ["t", "t"], "caption_0": ["number 0", "number 1"]}
    check(read_source(arrow(tmp_path / "a.arrow", table(range(2), **columns))), range(2))


def test_no_caption_column_names_what_is_there(tmp_path):
    made(range(2), label=[1, 2], words=["a", "b"]).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError) as caught:
        read_source(tmp_path / "a.parquet")
    assert "label (int64), words (string)" in caught.value.message
    assert "alt_text" in caught.value.hint and "caption_0" in caught.value.hint
    assert not (tmp_path / "cache").exists()  # told before anything is converted


def test_caption_column_of_numbers_is_none(tmp_path):
    with pytest.raises(DataError, match=r"no column of captions.*caption \(int64\)"):
        read_source(arrow(tmp_path / "a.arrow", table(range(2), caption=[1, 2])))


def test_no_image_column_names_what_is_there(tmp_path):
    file = arrow(tmp_path / "a.arrow", pa.table({"caption": ["a"], "label": [1]}))
    with pytest.raises(DataError, match=r"no column of pictures; its columns are caption \(string\), label \(int64\)"):
        read_source(file)


@pytest.mark.parametrize("name", ["image_url", "url", "URL", "image"])
def test_addresses_of_pictures(tmp_path, name):
    file = arrow(tmp_path / "a.arrow", pa.table({name: ["http://a/b.jpg"], "caption": ["a"]}))
    with pytest.raises(DataError, match="addresses") as caught:
        read_source(file)
    assert "img2dataset" in caught.value.hint


def test_addresses_beside_pictures_do_no_harm(tmp_path):
    columns = {"url": ["http://a", "http://b"], "caption": ["number 0", "number 1"]}
    check(read_source(arrow(tmp_path / "a.arrow", table(range(2), **columns))), range(2))


def test_paths_to_nowhere(tmp_path):
    file = arrow(tmp_path / "a.arrow", pa.table({"image": ["x/1.jpg", "x/2.jpg"], "caption": ["a", "b"]}))
    with pytest.raises(DataError, match=r"not there, x/1\.jpg for example"):
        read_source(file)


def test_two_columns_of_one_name(tmp_path):
    twice = pa.table([table(range(2))["image"], ["a", "b"], ["c", "d"]], names=["image", "caption", "caption"])
    with pytest.raises(DataError, match="two columns with the name caption"):
        read_source(arrow(tmp_path / "a.arrow", twice))
    harmless = pa.table(
        [table(range(2))["image"], ["number 0", "number 1"], [1, 2], [3, 4]], names=["image", "text", "x", "x"]
    )
    check(read_source(arrow(tmp_path / "b.arrow", harmless)), range(2))


# Splits


def test_split_column_wins(tmp_path):
    columns = {"caption": [f"number {n}" for n in range(5)], "split": ["train", "val", "validation", None, "test"]}
    (tmp_path / "set").mkdir()
    made(range(5), **columns).to_parquet(tmp_path / "set" / "test-00000-of-00001.parquet")
    source = read_source(tmp_path / "set")
    check(source, range(5))
    assert numbers(source, "train") == [0]
    assert numbers(source, "val") == [1, 2]
    assert numbers(source, "test") == [3, 4]  # one row says nothing, and the file is the test split's


def test_split_column_that_is_no_text_is_passed_over(tmp_path):
    columns = {"caption": ["number 0", "number 1"], "split": [0, 1]}
    source = read_source(arrow(tmp_path / "a.arrow", table(range(2), **columns)))
    assert set(source.splits) == {""}


def test_only_train_means_no_splits(tmp_path):
    datasets.DatasetDict({"train": made(range(40))}).save_to_disk(tmp_path / "saved")
    source = read_source(tmp_path / "saved")
    assert 0 < len(source.select("val")) < len(source.select("train"))


# Samples


def test_samples_of_each_split(tmp_path):
    splits = {"train": made(range(6)), "validation": made(range(6, 12))}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved", num_shards={"train": 3, "validation": 1})
    source = huggingface.read_local(tmp_path / "saved", samples=3)
    assert numbers(source) == [0, 1, 2, 6, 7, 8]


def test_samples_of_an_image_folder(tmp_path):
    image_folder(tmp_path / "set" / "train", 0, 4)
    image_folder(tmp_path / "set" / "test", 4, 4)
    source = huggingface.read_local(tmp_path / "set", samples=2)
    assert sorted(numbers(source)) == [0, 1, 4, 5]


def test_more_samples_than_rows(tmp_path):
    made(range(3)).to_parquet(tmp_path / "a.parquet")
    check(huggingface.read_local(tmp_path / "a.parquet", samples=100), range(3))


# Bad rows


BAD_ROWS = {
    "no picture": (None, "good"),
    "neither bytes nor path": ({"bytes": None, "path": None}, "good"),
    "no bytes": ({"bytes": b"", "path": "a.png"}, "good"),
    "an address": ({"bytes": None, "path": "https://a/b.png"}, "good"),
    "no caption": (cell(9), None),
    "an empty caption": (cell(9), " \n "),
}


@pytest.mark.parametrize("bad", BAD_ROWS, ids=lambda name: name.replace(" ", "-"))
def test_bad_row_is_told_and_shifts_no_other(tmp_path, bad):
    image, caption = BAD_ROWS[bad]
    pictures = pa.array([cell(0), image, cell(2)], STRUCT)
    rows = {"train": pa.table({"image": pictures, "caption": ["number 0", caption, "number 2"]}), "test": table([3])}
    folder = tmp_path / "saved"
    for split in rows:
        (folder / split).mkdir(parents=True)
        arrow(folder / split / "data.arrow", rows[split])
        state = {"_data_files": [{"filename": "data.arrow"}], "_split": split}
        (folder / split / "state.json").write_text(json.dumps(state))
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(rows)}))
    source = read_source(folder)
    assert numbers(source) == [0, 2, 3]
    assert captions(source) == [("number 0",), ("number 2",), ("number 3",)]
    assert source.problems[0].where == "saved train row 1"
    assert all("row" in problem.where and "=0" not in problem.where for problem in source.problems)


def test_null_in_a_list_of_captions(tmp_path):
    values = [["one", None, ""], [], ["two"]]
    source = read_source(arrow(tmp_path / "a.arrow", table(range(3), captions=values)))
    assert captions(source) == [("one",), ("two",)]
    assert numbers(source) == [0, 2]
    places = [problem.where for problem in source.problems]
    assert places == ["a.arrow row 0, caption 1", "a.arrow row 0, caption 2", "a.arrow row 1"]


def test_bad_rows_in_later_files_are_counted_through(tmp_path):
    rows = made(range(4)).add_column("bad", [0, 0, 0, 1])
    rows = rows.map(lambda row: {"caption": None if row["bad"] else row["caption"]})
    rows.save_to_disk(tmp_path / "saved", num_shards=2)
    source = read_source(tmp_path / "saved")
    assert numbers(source) == [0, 1, 2]
    assert [problem.where for problem in source.problems] == ["saved row 3"]


def test_the_same_picture_twice_is_two_records(tmp_path):
    source = read_source(arrow(tmp_path / "a.arrow", table([1, 1], caption=["one", "two"])))
    assert captions(source) == [("one",), ("two",)]


def test_nothing_good_at_all(tmp_path):
    with pytest.raises(DataError, match="no picture with a caption"):
        read_source(arrow(tmp_path / "a.arrow", table([1, 1], caption=[" ", "\t"])))


# Damage


def test_damaged_parquet(tmp_path):
    made(range(50)).to_parquet(tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read as Parquet"):
        read_source(tmp_path / "a.parquet")


def test_parquet_damaged_in_the_middle(tmp_path):
    made(range(50)).to_parquet(tmp_path / "a.parquet")
    whole = bytearray((tmp_path / "a.parquet").read_bytes())
    whole[4:2000] = bytes(1996)
    (tmp_path / "a.parquet").write_bytes(whole)
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read"):
        read_source(tmp_path / "a.parquet")


def test_the_damaged_one_of_several_is_named(tmp_path):
    made(range(5)).to_parquet(tmp_path / "train-0.parquet")
    (tmp_path / "train-1.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=r"train-1\.parquet"):
        read_source(tmp_path)


@pytest.mark.parametrize("write", [pa.ipc.new_stream, pa.ipc.new_file])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.99])
def test_arrow_cut_short(tmp_path, write, kept):
    file = arrow(tmp_path / "a.arrow", table(range(50)), write, rows=10)
    file.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])
    with pytest.raises(DataError, match=r"a\.arrow: cannot be read as Arrow"):
        read_source(file)


def test_arrow_cut_between_batches_is_a_problem(tmp_path):
    file = arrow(tmp_path / "a.arrow", table(range(5)))
    file.write_bytes(file.read_bytes()[:-8])
    source = read_source(file)
    assert numbers(source) == list(range(5))
    assert "cut short" in source.problems[0].reason


def test_caption_that_is_not_utf_8(tmp_path):
    texts = pa.array([b"number 0", b"caf\xe9", b"number 2"]).view(pa.string())
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3]), texts)
    pictures = table(range(3))["image"]
    for name, column in (("a", texts), ("b", lists)):
        file = arrow(tmp_path / f"{name}.arrow", pa.table({"image": pictures, "caption": column}))
        source = read_source(file)
        assert captions(source) == [("number 0",), ("number 2",)]
        assert numbers(source) == [0, 2]
        assert source.problems[0].where.startswith(f"{name}.arrow row 1")


@pytest.mark.parametrize("first", [b"number 0", b"caf\xe9"], ids=["UTF-8", "not-UTF-8"])
def test_text_that_ends_outside_of_the_file(tmp_path, first):
    """Reading it would crash the process; a text that is not UTF-8 is what the library stops checking at."""
    texts = first + b"number 1" + b"number 2"
    ends = np.array([0, len(first), 2**30, len(texts)], dtype=np.int32)
    column = pa.Array.from_buffers(pa.string(), 3, [None, pa.py_buffer(ends), pa.py_buffer(texts)])
    file = tmp_path / "a.arrow"
    arrow(file, pa.table({"image": table(range(3))["image"], "caption": column}))
    with pytest.raises(DataError, match=r"a\.arrow: cannot be read as Arrow"):
        read_source(file)


def test_saved_without_one_of_its_files(tmp_path):
    made(range(5)).save_to_disk(tmp_path / "saved", num_shards=2)
    (tmp_path / "saved" / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(DataError, match="data-00001-of-00002"):
        read_source(tmp_path / "saved")
    (tmp_path / "saved" / "state.json").write_text("{")
    with pytest.raises(DataError, match="save_to_disk"):
        read_source(tmp_path / "saved")


def test_full_disk(tmp_path, monkeypatch):
    made(range(5)).to_parquet(tmp_path / "a.parquet")

    def full(*_, **__):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise datasets.exceptions.DatasetGenerationError("An error occurred") from error

    monkeypatch.setattr(datasets.builder.DatasetBuilder, "download_and_prepare", full)
    with pytest.raises(DataError, match="the disk is full") as caught:
        read_source(tmp_path / "a.parquet")
    assert "HF_DATASETS_CACHE" in caught.value.hint


def test_library_is_silent_and_left_as_it_was(tmp_path, capfd):
    datasets.enable_progress_bars()
    made(range(3)).to_parquet(tmp_path / "a.parquet")
    capfd.readouterr()
    verbosity = datasets.logging.get_verbosity()
    read_source(tmp_path / "a.parquet")
    assert "".join(capfd.readouterr()) == ""
    assert not datasets.are_progress_bars_disabled()
    assert datasets.logging.get_verbosity() == verbosity


# The hub


def test_hub_names():
    for name in ("hf:a/b", "hf:b", "hf:a/b:en", "nlphuji/flickr30k", "a-b/c.d_e", "hf:not a name"):
        assert huggingface.is_hub_name(name), name
    for name in ("flickr30k", "a/b/c", "../data/a", "./a", "/a/b", "data/captions.json", "a/b.parquet", "a b/c", "~/x"):
        assert not huggingface.is_hub_name(name), name


@pytest.mark.parametrize("samples", [None, 5])
@pytest.mark.parametrize("name", ["owner/name", "hf:owner/name", "hf:name", "hf:owner/name:german"])
def test_hub_out_of_reach(tmp_path, monkeypatch, name, samples):
    monkeypatch.chdir(tmp_path)
    started = time.monotonic()
    with pytest.raises(DataError) as caught:
        read_source(name, samples=samples)
    assert time.monotonic() - started < 5
    assert caught.value.message.startswith(f"{name}: is neither a file nor a folder here")
    assert "could not be reached" in caught.value.message


def test_hub_name_is_never_a_folder_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    made(range(3)).to_parquet(tmp_path / "owner" / "name" / "a.parquet")
    with pytest.raises(DataError, match="could not be reached"):
        read_source("hf:owner/name")


@pytest.mark.parametrize("name", ["hf:", "hf:a b", "hf:a/b/c", "hf:../x", "hf:csv", "hf:imagefolder"])
def test_names_that_no_data_set_on_the_hub_can_have(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        read_source(name)
    assert "hf:owner/name" in caught.value.hint


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' doesn't exist on the Hub"), "doesn't exist"),
        (ConnectionError("Couldn't reach"), "could not be reached"),
        (RuntimeError("Dataset scripts are no longer supported, but found b.py"), "no code from the hub is run"),
        (ValueError("Config name is missing.\nPlease pick one among: ['en', 'de']"), "'en', 'de'"),
        (OSError("Not enough disk space. Needed: 1 TB"), "disk is full"),
        (KeyError("surprise"), "surprise"),
    ],
)
def test_errors_of_the_hub(monkeypatch, error, message):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(hub, "hub_answers", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset_builder", fail)
    with pytest.raises(DataError, match=message) as caught:
        huggingface.read_hub("hf:a/b")
    assert caught.value.message.startswith("hf:a/b:")


@pytest.fixture
def pretended_hub(tmp_path, monkeypatch):
    """A hub with one data set, which is a folder; gives the names that are asked for."""
    splits = {"train": made(range(6)), "validation": made(range(6, 9))}
    (tmp_path / "repo").mkdir()
    for split, rows in splits.items():
        rows.to_parquet(tmp_path / "repo" / f"{split}-00000-of-00001.parquet")
    asked, load = [], datasets.load_dataset_builder

    def load_builder(path, config=None):
        asked.append((path, config))
        return load(str(tmp_path / "repo"))

    monkeypatch.setattr(hub, "hub_answers", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset_builder", load_builder)
    return asked


def test_data_set_from_the_hub(pretended_hub):
    source = read_source("owner/name")
    check(source, range(9))
    assert source.splits == {"train": 6, "val": 3}
    assert source.path == "owner/name"
    assert pretended_hub == [("hf://datasets/owner/name", None)]


def test_what_was_downloaded_once_needs_no_hub(tmp_path, cache):
    made(range(4)).to_parquet(tmp_path / "train.parquet")
    builder = datasets.load_dataset_builder("parquet", data_files=str(tmp_path / "train.parquet"))
    builder.download_and_prepare()
    place = cache / "owner___name" / "default" / "0.0.0" / "0123abcd"
    shutil.copytree(builder.cache_dir, place)
    (place / "parquet-train.arrow").rename(place / "name-train.arrow")
    info = json.loads((place / "dataset_info.json").read_text())
    (place / "dataset_info.json").write_text(json.dumps({**info, "dataset_name": "name"}))
    check(read_source("owner/name"), range(4))


def test_samples_from_the_hub_are_kept(pretended_hub, cache):
    for _ in range(2):
        source = huggingface.read_hub("hf:owner/name:german", samples=2)
        assert numbers(source) == [0, 1, 6, 7]
        assert captions(source) == [("number 0",), ("number 1",), ("number 6",), ("number 7",)]
        assert source.splits == {"train": 2, "val": 2}
    assert pretended_hub == [("hf://datasets/owner/name", "german")]  # once
    assert numbers(huggingface.read_hub("hf:owner/name:german", samples=3)) == [0, 1, 2, 6, 7, 8]
    assert {file.parts[len(cache.parts)] for file in cache.rglob("*.arrow")} == {"cliplet"}  # nothing whole was made


def test_samples_are_there_whole_or_not_at_all(pretended_hub, cache, monkeypatch):
    def interrupted(*_):
        raise ConnectionResetError("gone")

    with monkeypatch.context() as patched:
        patched.setattr(hub, "_with_bytes", interrupted)
        with pytest.raises(DataError, match="could not be reached"):
            huggingface.read_hub("owner/name", samples=2)
    assert not list((cache / "cliplet" / "owner___name").iterdir())
    assert numbers(huggingface.read_hub("owner/name", samples=2)) == [0, 1, 6, 7]


def test_samples_with_pictures_in_files_of_their_own(tmp_path, cache):
    image_folder(tmp_path / "set", 0, 5)
    (tmp_path / "set" / "1.png").unlink()
    streams = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "set"), streaming=True)
    folder = cache / "cliplet" / "kept"
    hub.store_samples("name", streams, 3, folder)
    shutil.rmtree(tmp_path / "set")
    stored = read_source(folder / "000-train.arrow")
    assert numbers(stored) == [0, 2]
    assert stored.problems[0].where == "000-train.arrow row 1"


def test_samples_that_two_runs_write_at_once(tmp_path):
    splits = {"train": made(range(5)).to_iterable_dataset()}
    for _ in range(2):
        hub.store_samples("name", splits, 3, tmp_path / "kept")
    assert [file.name for file in tmp_path.iterdir() if file.name != "cache"] == ["kept"]
    assert numbers(read_source(tmp_path / "kept" / "000-train.arrow")) == [0, 1, 2]


def test_without_the_library(tmp_path, monkeypatch):
    made(range(2)).to_parquet(tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "datasets", None)
    for path in (tmp_path / "a.parquet", "owner/name"):
        with pytest.raises(DataError, match="the package datasets is needed") as caught:
            read_source(path)
        assert "pip install" in caught.value.hint


# Size


def test_many_rows_take_little_time_and_memory(tmp_path):
    count, picture = 200_000, b"x" * 100
    sizes = pa.array(np.arange(count + 1, dtype=np.int32) * len(picture)).buffers()[1]
    pictures = pa.StructArray.from_arrays(
        [pa.Array.from_buffers(pa.binary(), count, [None, sizes, pa.py_buffer(picture * count)])], ["bytes"]
    )
    rows = pa.table({"image": pictures, "caption": [f"a caption of number {number}" for number in range(count)]})
    file = arrow(tmp_path / "a.arrow", rows, rows=10_000)
    del rows, pictures
    arrow_before, started = pa.total_allocated_bytes(), time.process_time()
    source = read_source(file)
    assert time.process_time() - started < 20
    assert len(source.records) == count
    assert pa.total_allocated_bytes() - arrow_before < 2**20
    tracemalloc.start()
    huggingface.read_local(file, samples=count // 4)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 800 * count // 4
