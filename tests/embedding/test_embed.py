"""Row i is input i, in every format; what cannot be read is a row without a vector; what is there stays."""

import json
import os
import shutil
import tracemalloc
from pathlib import Path

import embed_stub
import lance
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from embed_stub import colour, write_pictures

from cliplet.embedding import Pictures, Sentences, embed, find_pictures, outputs
from cliplet.errors import ConfigError, DataError, ModelError
from cliplet.runtime import pipeline
from cliplet.runtime.pictures import Block

FORMATS = (".npy", ".parquet", ".lance")


@pytest.fixture
def photos(tmp_path):
    """Twenty pictures, of which the sixth and the tenth are none."""
    files = write_pictures(tmp_path / "photos", 20)
    files[5].write_bytes(b"no picture")
    files[9].write_bytes(b"")
    return tmp_path / "photos"


@pytest.fixture
def encoder(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return embed_stub.encoder(tmp_path / "model")


def colours(rows):
    return (np.array([colour(row) for row in rows]) / 255).astype(np.float32)


def read(out):
    """Vectors with NaN for none, names, and errors by row."""
    if out.suffix == ".npy":
        lines = out.with_name(out.name + ".names.jsonl").read_bytes().splitlines()
        entries = [json.loads(line) for line in lines]
        names = [entry.get("path", entry.get("text")) for entry in entries]
        errors = {row: entry["error"] for row, entry in enumerate(entries) if "error" in entry}
        return np.load(out, mmap_mode="r"), names, errors
    table = pyarrow.parquet.read_table(out) if out.suffix == ".parquet" else lance.dataset(str(out)).to_table()
    column = table.column("embedding")
    size = next((len(row) for row in column.to_pylist() if row is not None), 1)
    vectors = [row if row is not None else [np.nan] * size for row in column.to_pylist()]
    dtype = column.type.value_type.to_pandas_dtype()
    errors = {row: error for row, error in enumerate(table.column("error").to_pylist()) if error is not None}
    assert [row for row, one in enumerate(column.to_pylist()) if one is None] == sorted(errors)
    return np.array(vectors, dtype=dtype), table.column(0).to_pylist(), errors


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("half", [False, True])
def test_each_format_has_each_row(photos, encoder, tmp_path, ending, half):
    out, pictures = tmp_path / f"out{ending}", find_pictures([photos])
    summary = embed(pictures, encoder, out, half=half, quarantine=tmp_path / "bad.jsonl")
    vectors, names, errors = read(out)
    assert vectors.shape == (20, 4) and vectors.dtype == (np.float16 if half else np.float32)
    assert names == list(pictures)
    assert set(errors) == {5, 9} and "not a picture" in errors[5] and errors[9] == "the file is empty"
    good = [row for row in range(20) if row not in errors]
    np.testing.assert_allclose(vectors[good, :3], colours(good), atol=1e-3 if half else 1e-6)
    assert np.isnan(vectors[sorted(errors)]).all()
    assert (summary.rows, summary.embedded, summary.failed, summary.dims) == (20, 18, 2, 4)
    assert summary.resumed_from == 0 and summary.pictures_per_second > 0
    bad = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert [entry["where"] for entry in bad] == [names[5], names[9]]
    assert not Path(f"{out}.partial").exists()


def test_a_file_of_numpy_is_plain(photos, encoder, tmp_path):
    embed(find_pictures([photos]), encoder, tmp_path / "out.npy")
    vectors = np.load(tmp_path / "out.npy", mmap_mode="r", allow_pickle=False)
    assert isinstance(vectors, np.memmap) and vectors.flags.c_contiguous and vectors.dtype.str == "<f4"


@pytest.mark.parametrize("ending", FORMATS[1:])
def test_tables_say_what_made_them(photos, encoder, tmp_path, ending, monkeypatch):
    monkeypatch.setattr(outputs, "BLOCK_BYTES", 0)  # 256 rows at once
    out = tmp_path / f"out{ending}"
    embed(Sentences([f"sentence {row}" for row in range(600)]), encoder, out)
    if ending == ".parquet":
        metadata = pyarrow.parquet.read_metadata(out)
        assert [metadata.row_group(number).num_rows for number in range(3)] == [256, 256, 88]
        schema = pyarrow.parquet.read_schema(out)
    else:
        schema = lance.dataset(str(out)).schema
    said = json.loads(schema.metadata[b"cliplet"])
    assert said["model"] == encoder.source and said["cliplet"] and said["job"]["dims"] == 4
    assert schema.names == ["text", "embedding", "error"]
    if ending == ".lance":  # which searches in lists of fixed size alone
        assert schema.field("embedding").type.list_size == 4
    assert read(out)[1][599] == "sentence 599"


@pytest.mark.parametrize("batch_size", [1, 3, 7, 50])
def test_order_holds_with_three_workers_and_any_batch(photos, encoder, tmp_path, monkeypatch, batch_size):
    monkeypatch.setattr(pipeline, "cores", lambda: 3)
    encoder.engine.seconds = 0.002
    named = [photos / f"{row:03d}.png" for row in np.random.default_rng(0).integers(0, 20, 60)]
    embed(find_pictures(named), encoder, tmp_path / "out.npy", batch_size=batch_size)
    vectors, names, errors = read(tmp_path / "out.npy")
    assert names == [str(name) for name in named]
    for row, name in enumerate(named):
        number = int(name.stem)
        assert (row in errors) == (number in (5, 9)) == bool(np.isnan(vectors[row]).all())
        if row not in errors:
            np.testing.assert_allclose(vectors[row, :3], colours([number])[0], atol=1e-6)


STRANGE = [b"line\nbreak.png", b"  spaces .png", "犬と猫.png".encode(), b"not \xff\xfe UTF-8.png", b'"quoted" \\.png']


@pytest.mark.parametrize("ending", FORMATS)
def test_names_of_all_kinds_survive(encoder, tmp_path, ending):
    (file,) = write_pictures(tmp_path / "one", 1)
    places = [os.fsencode(tmp_path) + b"/" + name for name in STRANGE]
    for place in places:
        shutil.copy(file, place)
    missing = os.fsencode(tmp_path) + b"/gone \xff\n.png"
    pictures = find_pictures([os.fsdecode(place) for place in places], [os.fsdecode(missing)])
    embed(pictures, encoder, tmp_path / f"out{ending}", quarantine=tmp_path / "bad.jsonl")
    _, names, errors = read(tmp_path / f"out{ending}")
    assert errors == {5: "no such file"}
    if ending == ".npy":
        assert [os.fsencode(name) for name in names] == [*places, missing]
    else:  # tables take UTF-8 alone
        assert names[:3] == [place.decode() for place in places[:3]]
        assert names[3].endswith("not \\udcff\\udcfe UTF-8.png")
    assert "gone" in json.loads((tmp_path / "bad.jsonl").read_text())["where"]


def test_sentences_with_an_empty_one_and_half_a_character(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("cliplet.embedding.run.TEXTS_AT_ONCE", 2)
    texts = ["a dog", "", "zebra", "half \ud83d", "same", "same"]
    embed(Sentences(texts), encoder, tmp_path / "out.npy")
    vectors, names, errors = read(tmp_path / "out.npy")
    assert names == texts and not errors
    assert vectors[:, 0].tolist() == [5, 0, 5, 6, 4, 4] and vectors[2, 1] == ord("z")
    embed(Sentences(texts), encoder, tmp_path / "out.parquet")
    assert read(tmp_path / "out.parquet")[1][3] == "half \\ud83d"


@pytest.mark.parametrize("ending", FORMATS)
def test_what_is_complete_is_not_done_again(photos, encoder, tmp_path, ending):
    out = tmp_path / f"out{ending}"
    first = embed(find_pictures([photos]), encoder, out)
    computed, before = encoder.engine.pictures, _state(tmp_path)
    second = embed(find_pictures([photos]), encoder, out)
    assert second.resumed_from == 20 and second.failed == 2 and second.pictures_per_second is None
    assert second.engine == first.engine and encoder.engine.pictures == computed and _state(tmp_path) == before


@pytest.mark.parametrize("ending", FORMATS)
def test_another_job_needs_overwrite(photos, encoder, tmp_path, ending):
    out = tmp_path / f"out{ending}"
    embed(find_pictures([photos]), encoder, out)
    fewer, before = find_pictures([photos / "000.png"]), _state(tmp_path)
    with pytest.raises(DataError, match="is there already") as caught:
        embed(fewer, encoder, out)
    assert "--overwrite" in caught.value.hint and _state(tmp_path) == before
    embed(fewer, encoder, out, overwrite=True)
    assert read(out)[1] == list(fewer) and embed(fewer, encoder, out).resumed_from == 1
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("name", ["out.npy", "out.npy.names.jsonl", "out.npy.json", "out.parquet"])
def test_files_of_others_are_left_alone(photos, encoder, tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(DataError, match=f"{name}: is there already"):
        embed(find_pictures([photos]), encoder, tmp_path / name.replace(".names.jsonl", "").replace(".json", ""))
    assert (tmp_path / name).read_text() == "mine" and not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("overwrite", [False, True])
def test_folders_of_others_are_left_alone(photos, encoder, tmp_path, overwrite):
    for name in ("out.lance", "out.npy.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "features.npy").write_text("mine")
    (tmp_path / "out.parquet").mkdir()
    for name, says in (("out.lance", "no Lance dataset"), ("out.npy", "nothing in it was touched")):
        with pytest.raises(DataError, match=says):
            embed(find_pictures([photos]), encoder, tmp_path / name, overwrite=overwrite)
    with pytest.raises(IsADirectoryError):
        embed(find_pictures([photos]), encoder, tmp_path / "out.parquet", overwrite=overwrite)
    (tmp_path / "out2.npy.partial").write_text("mine")
    with pytest.raises(DataError, match="is a file"):
        embed(find_pictures([photos]), encoder, tmp_path / "out2.npy", overwrite=overwrite)
    assert (tmp_path / "out.lance" / "features.npy").read_text() == "mine"
    assert (tmp_path / "out.npy.partial" / "features.npy").read_text() == "mine"
    assert (tmp_path / "out2.npy.partial").read_text() == "mine"


def _state(folder):
    """All that would change where something was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_not_one_picture(photos, encoder, tmp_path):
    bad = [photos / "005.png", photos / "009.png"]
    with pytest.raises(DataError, match=r"not one picture of 2 could be read; the first, .*005\.png: not a picture"):
        embed(find_pictures(bad), encoder, tmp_path / "out.npy", quarantine=tmp_path / "bad.jsonl")
    assert not list(tmp_path.glob("out*")) and len((tmp_path / "bad.jsonl").read_text().splitlines()) == 2


def test_what_cannot_be_is_refused_before_the_model_is_opened(photos, tmp_path, monkeypatch):
    pictures = find_pictures([photos])
    with pytest.raises(ConfigError, match=r"\.npy, \.parquet or \.lance"):
        embed(pictures, "nowhere", tmp_path / "out.csv")
    with pytest.raises(FileExistsError):
        embed(pictures, "nowhere", photos / "000.png" / "out.npy")
    with pytest.raises(DataError, match="nothing to embed"):
        embed(Sentences([]), "nowhere", tmp_path / "out.npy")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name, package in (("out.parquet", "pyarrow"), ("out.lance", "pyarrow")):
        with pytest.raises(ModelError, match=f"needs the package {package}") as caught:
            embed(pictures, "nowhere", tmp_path / name)
        assert "[scale]" in caught.value.hint
    with pytest.raises(ModelError, match="nowhere: no such model folder"):
        embed(pictures, "nowhere", tmp_path / "out.npy")


@pytest.mark.parametrize("ending", FORMATS)
def test_memory_stays_flat(encoder, tmp_path, monkeypatch, ending):
    """20 MB of vectors, with a name for each, pass through a fraction of that."""
    count, dims = 20_000, 256
    pictures = Pictures()
    pictures.paths.extend([f"/photographs/holidays at the sea/IMG_{number:07d}.jpg" for number in range(count)])
    pictures.sizes.extend(range(count))
    pictures.times.extend(range(count))
    encoder.embed_dim = dims

    def blocks(paths, batch_size):
        block = np.random.default_rng(0).random((64, dims), dtype=np.float32)
        for rows, path in enumerate(paths, start=1):
            assert isinstance(path, str)
            if rows % 64 == 0 or rows == count:
                yield Block(block[: (rows - 1) % 64 + 1], {})

    encoder.encode_image_blocks = blocks
    monkeypatch.setattr(outputs, "BLOCK_BYTES", 2**20)
    out = tmp_path / f"out{ending}"
    before = pyarrow.default_memory_pool().max_memory()
    tracemalloc.start()
    try:
        embed(pictures, encoder, out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6e6
    assert pyarrow.default_memory_pool().max_memory() - before < 12e6
