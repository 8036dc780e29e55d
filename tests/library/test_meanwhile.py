"""What readers see while others write: one model's vectors at a time, and all of a library or word that it changed."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import cliplet
from cliplet.errors import ConfigError
from cliplet.library import Library, duplicates, local_reading
from cliplet.library.duplicates import find
from cliplet.library.fit import Part, combine, fits
from cliplet.library.local_compact import compact
from cliplet.library.store import Calibration, ChangedError, open_store

from .stores import DIMS, KINDS, changed, entry, filled, identity, vector


@pytest.fixture(params=KINDS)
def store(request, tmp_path):
    if request.param == "lance":
        pytest.importorskip("lance")
    store = filled(request.param, tmp_path, [entry(number) for number in range(20)])
    yield store
    store.close()


def upgrade(place, new, dims=DIMS):
    """Another process's upgrade to another model, from its begin to its end."""
    with open_store(place).writing(print) as writer:
        writer.begin(new, True)
        entries = []
        for path, known in writer.known().items():
            number = int(path[-7:-4])
            entries.append(entry(number, id=known.id))
            entries[-1].features_D = vector(1000 + number, dims)
        writer.write(entries, [])
        writer.finish(lambda: np.empty((0, dims), np.float32))


@pytest.mark.parametrize("dims", [DIMS, 8])
def test_a_query_of_the_old_model_is_never_held_against_the_new_ones_vectors(store, dims):
    upgrade(store.place, identity("another model", dims), dims)
    for refreshed in (False, True):
        if refreshed:
            store.refresh()
        try:
            found = store.nearest(vector(7), 1, None, identity())
        except ChangedError:
            continue
        assert found[0].picture.name == "007.jpg" and not refreshed  # where the old ones are still to be had
    assert store.nearest(vector(1007, dims), 1, None, identity("another model", dims))[0].picture.name == "007.jpg"
    for ask in (
        lambda: store.nearest(vector(7), 1, None, identity()),
        lambda: store.nearest_captions(vector(7), 1, None, identity()),
        lambda: store.features([1], identity()),
    ):
        with pytest.raises(ChangedError, match="replaced meanwhile"):
            ask()


def test_a_search_goes_on_with_the_new_model(made_library, tiny_config, tmp_path, encoder):
    import shutil

    import torch

    from cliplet.models import DualEncoder

    torch.manual_seed(1)
    DualEncoder.build(tiny_config, ["other words"]).eval().save_pretrained(tmp_path / "other", card="# card\n")
    shutil.copytree(made_library, tmp_path / "made.library")
    with Library.open(tmp_path / "made.library", encoder) as reader:
        of_the_old = reader.combined("a boat")
        with Library.open(tmp_path / "made.library") as writer:
            writer.add(model=tmp_path / "other", upgrade=True)
        found = reader.search("a boat", k=12)
        pictures = sorted(picture.path for picture in reader.newest(20))
        other = cliplet.load(tmp_path / "other")
        cosine_N = other.encode_image(pictures) @ other.encode_text(["a boat"])[0]
        assert [hit.path for hit in found] == [pictures[row] for row in np.argsort(-cosine_N)]
        with pytest.raises(ChangedError):  # its words are not known any more
            reader.search(of_the_old)
        assert len(reader.scores(1, ["a boat"])) == 1


def test_the_model_is_opened_anew_for_vectors_of_other_dimensions(opened, monkeypatch):
    """Those of one model in fewer dimensions have the same hashes."""
    module = sys.modules["cliplet.library.identity"]
    fewer = replace(opened.identity, dims=8)
    monkeypatch.setattr(type(opened.store), "identity", property(lambda self: fewer))
    monkeypatch.setattr(module, "open_again", lambda place, identity, engine: f"opened in {identity.dims}")
    assert opened.encoder == "opened in 8"


def test_a_compaction_is_no_reason_to_find_nothing(tmp_path):
    store = filled("local", tmp_path, [entry(number) for number in range(20)])
    features_D = store.features([8])[0]
    with open_store(store.place).writing(print) as writer:
        writer.begin(store.identity)
        writer.remove([1, 2, 3])
        compact(writer)
    assert [one.picture.id for one in store.nearest(features_D, 1, None, store.identity)] == [8]
    assert np.array_equal(store.features([8])[0], features_D)


def test_blocks_are_those_of_one_moment(tmp_path, monkeypatch):
    monkeypatch.setattr(local_reading, "IN_BLOCK", 5)
    store = filled("local", tmp_path, [entry(number) for number in range(20)])
    blocks = store.features_in_blocks()
    next(blocks)
    upgrade(store.place, identity("another model"))
    with pytest.raises(ChangedError):
        list(blocks)
    assert sum(len(pictures) for pictures, _ in store.features_in_blocks()) == 20


def test_copies_are_looked_for_anew_where_vectors_were_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(local_reading, "IN_BLOCK", 5)
    alike = [entry(number, path=f"/photos/{number:03d}.jpg") for number in range(20)]
    store = filled("local", tmp_path, alike)
    original, calls = type(store).features_in_blocks, []

    def slow(self):
        calls.append(1)
        for place, block in enumerate(original(self)):
            if len(calls) == 1 and place == 1:
                upgrade(store.place, identity("another model"))
            yield block

    monkeypatch.setattr(type(store), "features_in_blocks", slow)
    groups = find(store, alike=0.0001)
    assert len(calls) == 2 and sum(map(len, groups)) == 20


def test_a_sample_holds_what_the_library_holds_and_only_numbers(tmp_path):
    store = filled("local", tmp_path, [entry(number) for number in range(1, 21)])
    changed(store, lambda writer: writer.remove([1, 2, 3]))
    file = tmp_path / "files" / "vectors-1.f16"
    damaged = bytearray(file.read_bytes())
    damaged[2 * DIMS * 7 : 2 * DIMS * 8] = b"\xff" * 2 * DIMS
    file.write_bytes(damaged)
    store = open_store(store.place)
    rows = {row.tobytes() for row in store.sample(100)}
    assert rows == {vector(number).tobytes() for number in range(4, 21) if number != 8}
    assert store.sample(5).shape == (5, DIMS)
    query = combine([Part(1.0, True, vector(5))], Calibration())
    assert fits(query, np.array([1.0]), Calibration(), lambda: store.sample(100)).tolist() == [100.0]


def test_copies_are_named_however_a_picture_was_found(made_library, tmp_path, encoder):
    import shutil

    with Library.open(made_library) as made:
        path = next(picture.path for picture in made.newest(20) if picture.name == "03.png")
    (tmp_path / "photos").mkdir()
    for name in ("one.png", "two.png"):
        shutil.copy(path, tmp_path / "photos" / name)
    captions = {str(tmp_path / "photos" / "one.png"): ["a boat", "a ship"]}
    with Library.create(tmp_path / "l", encoder) as library:
        library.add(tmp_path / "photos", captions=captions)
        (by_picture,), (by_caption,) = (library.search("a boat", by=by) for by in ("pictures", "captions"))
        assert by_caption.copies == (str(tmp_path / "photos" / "two.png"),)
        assert {by_picture.path, *by_picture.copies} == {by_caption.path, *by_caption.copies}
        (filtered,) = library.search("a boat", by="captions", where="name = 'one.png'")
        assert filtered.copies == ()


def test_captions_of_the_pictures_that_pass(opened):
    found = opened.captions("one of twelve", k=20, where="width in (51, 52)")
    assert {one.text for one in found} == {
        "picture number 3",
        "picture number 4",
        "one of twelve",
        "a boat on the lake",
    }
    with pytest.raises(ConfigError):
        opened.captions("x", where="nonsense (((")


def test_of_each_picture_the_nearest_are_candidates(monkeypatch):
    monkeypatch.setattr(duplicates, "MOST_NEIGHBOURS", 3)
    monkeypatch.setattr(duplicates, "COMPARED_AT_ONCE", 7)
    random = np.random.default_rng(0)
    features_ND = random.standard_normal((40, 8))
    features_ND = (features_ND / np.linalg.norm(features_ND, axis=1, keepdims=True)).astype(np.float16)
    cosine_NN = features_ND.astype(np.float32) @ features_ND.astype(np.float32).T
    pairs = np.concatenate(list(duplicates._close_pairs(features_ND, 0.3, lambda done, total: None)))
    expected = set()
    for row in range(40):
        later = [other for other in range(row + 1, 40) if cosine_NN[row, other] >= 0.3]
        expected |= {(row, other) for other in sorted(later, key=lambda other: -cosine_NN[row, other])[:3]}
    assert {tuple(pair) for pair in pairs.tolist()} == expected and len(pairs) == len(expected)


@pytest.mark.slow
def test_many_threads_may_be_the_first_to_compute(exported_model, tmp_path):
    """OpenVINO sets up what a tensor is as an array at the first look at one, and two threads could wait for each other
    for ever; a fifth of these processes did."""
    pytest.importorskip("openvino")
    code = (
        "import sys; sys.setswitchinterval(1e-6)\n"
        "import numpy as np, cliplet\n"
        "encoder = cliplet.load(sys.argv[1], engine='openvino', precision='fp32')\n"
        "pictures = [np.zeros((40, 40, 3), np.uint8)] * 16\n"
        "print(len(list(encoder.encode_image_blocks(pictures, batch_size=4))))\n"
    )
    for _ in range(15):
        done = subprocess.run(
            [sys.executable, "-c", code, str(exported_model)], capture_output=True, text=True, timeout=60
        )
        assert done.stdout.strip() == "4", done.stderr
