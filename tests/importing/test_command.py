"""`cliplet import`: what it writes, and what it says of what it cannot read."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import cliplet
from cliplet.cli import main


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("current"))


@pytest.fixture
def run(capsys):
    """Runs a command; returns its status, standard output and standard error."""

    def run(*words):
        status = main([str(word) for word in words])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def fails(run, tmp_path):
    """Runs an import that must fail and leave nothing behind; returns what it said."""

    def fails(*words):
        status, out, err = run("import", words[0], tmp_path / "out", *words[1:])
        assert status == 1 and out == ""
        assert err.startswith("error: ") and "Traceback" not in err
        assert not (tmp_path / "out").exists()
        return err

    return fails


@pytest.fixture
def clip_folder(tmp_path, write_tokenizer):
    folder = tmp_path / "clip"
    folder.mkdir()
    rows = write_tokenizer("clip", folder / "tokenizer.json")
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    text = {**small, "vocab_size": rows, "max_position_embeddings": 20, "eos_token_id": rows - 1}
    vision = {**small, "image_size": 32, "patch_size": 16}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    transformers.CLIPModel(config).save_pretrained(folder)
    return folder


def test_a_checkpoint_becomes_a_folder_that_opens_anywhere(plain_example, run, texts, tmp_path):
    status, out, _ = run("import", plain_example.file, tmp_path / "out", *plain_example.words)
    assert status == 0
    millions = sum(
        parameter.numel() for name, parameter in plain_example.model.named_parameters() if "pooler" not in name
    )
    assert out.splitlines()[0] == f"{millions / 1e6:.1f} M parameters; model: {tmp_path / 'out'}"
    assert out.splitlines()[1].startswith("pictures: squash to ") or plain_example.words[1] == "1"

    encoder = cliplet.load(tmp_path / "out")
    ids, mask = encoder.tokenizer(texts[:1])
    with torch.no_grad():
        expected = plain_example.model.text(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
    np.testing.assert_allclose(encoder.encode_text(texts[:1]), expected, atol=1e-5)
    image = encoder.encode_image([Image.new("RGB", (50, 40), color) for color in ("red", "blue")])
    assert image.shape == (2, expected.shape[1])
    np.testing.assert_allclose(np.linalg.norm(image, axis=1), 1, atol=1e-5)

    status, out, _ = run("inspect", tmp_path / "out")
    assert status == 0 and "M parameters, " in out and "image_head:" in out
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| imported from | {plain_example.file} |" in card
    assert f"cliplet import {plain_example.file} " in card


def test_a_folder_of_hugging_face_s_becomes_one_of_cliplet_s(clip_folder, run, tmp_path):
    status, out, _ = run("import", clip_folder, tmp_path / "out")
    assert status == 0 and str(tmp_path / "out") in out
    shutil.rmtree(clip_folder)
    assert cliplet.load(tmp_path / "out").encode_text(["a red boat"]).shape == (1, 16)
    status, out, _ = run("inspect", tmp_path / "out", "--json")
    assert status == 0 and json.loads(out)["model"]["embed_dim"] == 16


def test_what_is_there_is_never_written_over(make_example, run, tmp_path):
    example = make_example("1")
    (tmp_path / "out").mkdir()  # an empty folder may be filled
    assert run("import", example.file, tmp_path / "out", *example.words)[0] == 0
    before = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text('{"model_type": "clip"}')
    (tmp_path / "file").write_text("words")
    for place, inside in (("theirs", "theirs/config.json"), ("file", "file"), ("out", "out/config.json")):
        kept = (tmp_path / inside).read_text()
        status, out, err = run("import", example.file, tmp_path / place, *example.words)
        assert (status, out) == (1, "") and "is there already" in err
        assert (tmp_path / inside).read_text() == kept
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == before


def test_bad_sources_are_told(make_example, fails, clip_folder, tmp_path):
    example = make_example("1")
    assert "no such file or folder" in fails(tmp_path / "nothing")
    assert "no such file" in fails(tmp_path / "nothing.pt", "--system", "1")
    assert "--system" in fails(example.file)
    assert "there is no system 7" in fails(example.file, "--system", "7")
    assert "Is it of another system?" in fails(example.file, "--system", "3")
    (tmp_path / "cut.pt").write_bytes(example.file.read_bytes()[:9999])
    assert "cut.pt: cannot be opened as a checkpoint" in fails(tmp_path / "cut.pt", "--system", "1")
    assert "config.json cannot be read" in fails(tmp_path)
    assert "ViT-B-99" in fails("open_clip:ViT-B-99/nobody")
    (clip_folder / "model.safetensors").write_bytes(b"x")
    assert "cannot be opened" in fails(clip_folder)
    (clip_folder / "config.json").write_text('{"model_type": "llama"}')
    assert "holds a model of type 'llama'" in fails(clip_folder)


def test_code_in_a_checkpoint_never_runs(fails, code_that_runs, tmp_path):
    torch.save({"student_state": code_that_runs(tmp_path / "ran")}, tmp_path / "code.pt")
    said = fails(tmp_path / "code.pt", "--system", "1")
    assert "mkdir is inside" in said and not (tmp_path / "ran").exists()


def test_what_is_not_in_the_checkpoint_is_asked_for(make_example, fails, tmp_path):
    def without(example, option):
        words = list(example.words)
        at = words.index(option)
        return fails(example.file, *words[:at], *words[at + 2 :])

    assert "--tokenizer" in without(make_example("2"), "--tokenizer")
    assert "--tokenizer" in without(make_example("4"), "--tokenizer")
    assert "--vocabulary" in without(make_example("5"), "--vocabulary")
    assert "--image-tower" in without(make_example("3"), "--image-tower")
    assert "--text-config" in without(make_example("3"), "--text-config")
    (tmp_path / "few.json").write_text('[{"image": "x", "caption": "too few words"}]')
    said = fails(
        make_example("5").file, "--system", "5", "--image-tower", "test_vit", "--vocabulary", tmp_path / "few.json"
    )
    assert "has 3 different words" in said and "26 entries" in said


def test_weights_that_do_not_fit_are_named(make_example, fails, tmp_path):
    example = make_example("1")
    content = example.content()
    del content["student_state"]["t_proj.ln.weight"]
    content["student_state"]["strange"] = torch.zeros(1)
    torch.save(content, tmp_path / "changed.pt")
    said = fails(tmp_path / "changed.pt", *example.words)
    assert "1 missing (text_head.norm.weight); 1 left over (strange)" in said


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        (("--system", "2", "--vocabulary", "captions.json"), "--vocabulary"),
        (("--system", "5", "--text-config", "c.json", "--image-config", "c.json"), "--image-config, --text-config"),
        ((), "--image-tower"),
    ],
)
def test_an_option_without_a_use_is_refused(words, flags, clip_folder, run, tmp_path):
    words = words or ("--image-tower", "resnet18")
    source = clip_folder if "--system" not in words else tmp_path / "x.pt"
    status, _, err = run("import", source, tmp_path / "out", *words)
    assert status == 1 and f"has no use for {flags}" in err
