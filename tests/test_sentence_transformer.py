"""A model folder in sentence-transformers: the same vectors as cliplet gives, in the same order."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sentence_transformers import SentenceTransformer, util

import cliplet
from cliplet.cli import main
from cliplet.errors import ClipletError, ImageError
from cliplet.sentence_transformer import ClipletModule

TEXTS = ["a red boat", "two dogs run in the deep snow", "boat", "", "ünï 船", "a red boat"]


@pytest.fixture(scope="module")
def encoder(saved_model):
    return cliplet.load(saved_model)


@pytest.fixture(scope="module", params=["by its folder", "by its module"])
def model(request, saved_model):
    """The two ways to open a model folder there."""
    if request.param == "by its folder":
        return SentenceTransformer(str(saved_model), trust_remote_code=True, device="cpu")
    return SentenceTransformer(modules=[ClipletModule(saved_model)], device="cpu")


@pytest.fixture
def pictures(tmp_path):
    """Pictures of several sizes, and the files they are in."""
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in ((40, 60), (70, 33))]
    files = [tmp_path / f"{number}.png" for number in range(len(images))]
    for image, file in zip(images, files, strict=True):
        image.save(file)
    return images, [str(file) for file in files]


def test_texts(model, encoder):
    expected = encoder.encode_text(TEXTS)
    for batch_size in (1, 2, 32):
        got = model.encode(TEXTS, batch_size=batch_size)
        assert got.shape == (6, 16) and got.dtype == np.float32
        assert (got * expected).sum(1).min() > 0.9999
    np.testing.assert_allclose(model.encode("a red boat"), expected[0], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(model.encode(TEXTS, normalize_embeddings=True), axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(model.encode(["red boat"], prompt="a "), expected[:1], atol=1e-6)
    assert len(model.encode([])) == 0
    tensor = model.encode(TEXTS, convert_to_tensor=True)
    assert tensor.shape == (6, 16) and tensor.device.type == "cpu"
    assert model.encode(TEXTS, truncate_dim=4).shape == (6, 4)


def test_pictures_as_objects_files_and_arrays(model, encoder, pictures):
    images, files = pictures
    expected = encoder.encode_image(images)
    arrays = [np.asarray(image) for image in images]
    keyed = [{"image": image} for image in images]
    for given in (images, files, arrays, keyed):  # keyed from its version 6 on
        for batch_size in (1, 32):
            got = model.encode(given, batch_size=batch_size)
            assert (got * expected).sum(1).min() > 0.9999
    np.testing.assert_allclose(model.encode(images[1]), expected[1], atol=1e-6)
    np.testing.assert_allclose(model.encode(files[1]), expected[1], atol=1e-6)


def test_similarity_is_the_cosine(model, encoder, pictures):
    expected = encoder.encode_text(TEXTS) @ encoder.encode_image(pictures[0]).T
    assert model.similarity_fn_name == "cosine"
    got = model.similarity(model.encode(TEXTS), model.encode(pictures[0]))
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)
    found = util.semantic_search(model.encode(TEXTS[:1]), model.encode(pictures[0]))
    assert found[0][0]["corpus_id"] == int(expected[0].argmax())


def test_what_the_model_says_of_itself(model, encoder):
    assert model.get_embedding_dimension() == encoder.embed_dim == 16
    assert model.max_seq_length == 24
    assert model.supports("text") and model.supports("image") and not model.supports("audio")


def test_what_is_no_text_and_no_picture(model, tmp_path):
    (tmp_path / "bad.png").write_text("no picture")
    with pytest.raises(ImageError):
        model.encode([str(tmp_path / "bad.png")])
    with pytest.raises(ImageError, match="not fetched from addresses"):
        model.encode(["https://localhost/photo.jpg"])
    with pytest.raises(ValueError, match="audio"):
        model.encode([np.zeros(100)])
    assert model.encode(["no file here.png", "see https://localhost/a.jpg"]).shape == (2, 16)


def test_saved_it_is_a_model_folder_again(model, encoder, saved_model, tmp_path):
    model.save_pretrained(str(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "modules.json").read_text())[0]["type"].startswith("cliplet.")
    np.testing.assert_array_equal(cliplet.load(tmp_path / "out").encode_text(TEXTS), encoder.encode_text(TEXTS))
    again = SentenceTransformer(str(tmp_path / "out"), trust_remote_code=True, device="cpu")
    np.testing.assert_array_equal(again.encode(TEXTS), model.encode(TEXTS))
    assert main(["inspect", str(tmp_path / "out")]) == 0
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    again.save_pretrained(str(tmp_path / "out"), create_model_card=False)  # over itself
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before


def test_a_model_without_a_folder_cannot_be_saved(encoder, tmp_path):
    loose = cliplet.Encoder(encoder.engine, encoder.tokenizer, encoder.preprocess, encoder.embed_dim)
    model = SentenceTransformer(modules=[ClipletModule(loose)], device="cpu")
    assert model.encode(TEXTS).shape == (6, 16)
    with pytest.raises(ClipletError, match="no folder"):
        model.save_pretrained(str(tmp_path / "out"))


def test_no_code_of_the_folder_is_run(model_copy):
    """Trust is asked for, but the class comes from the installed package."""
    evil = "raise SystemExit('this was run')\n"
    (model_copy / "sentence_transformer.py").write_text(evil)
    (model_copy / "cliplet.py").write_text(evil)
    (model_copy / "cliplet").mkdir()
    (model_copy / "cliplet" / "sentence_transformer.py").write_text(evil)
    model = SentenceTransformer(str(model_copy), trust_remote_code=True, device="cpu")
    assert type(model[0]) is ClipletModule
    assert Path(model[0].encoder.source) == model_copy
