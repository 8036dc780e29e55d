"""Each verb, and each thing that people get wrong: two lines that say what to do, never a traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import cliplet
from cliplet.cli import VERBS, main
from cliplet.config import from_yaml, to_yaml
from cliplet.recipes import recipe


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory, monkeypatch):
    """What a command writes into the current folder by default goes where nobody looks."""
    monkeypatch.chdir(tmp_path_factory.mktemp("current"))


@pytest.fixture
def fails(capsys):
    """Runs a command that must fail; returns what it said on standard error."""

    def run(*words, status=1):
        assert main([str(word) for word in words]) == status
        printed = capsys.readouterr()
        assert printed.err.startswith("error: ")
        assert "Traceback" not in printed.err and printed.out == ""
        return printed.err

    return run


@pytest.fixture
def trained(monkeypatch):
    """Stands in for training; keeps the configuration that the command line arrived at."""
    import cliplet.training
    from cliplet.errors import TrainingError

    calls = []

    def train(config, *, resume, command, console):
        calls.append((config, resume, command))
        raise TrainingError("not now")

    monkeypatch.setattr(cliplet.training, "train", train)
    return calls


def test_overview_names_every_command(capsys):
    for words in ([], ["--help"], ["-h"], ["help"]):
        assert main(words) == 0
        shown = capsys.readouterr().out
        assert all(f"  {name} " in shown for name in VERBS)


@pytest.mark.parametrize("word", ["--version", "-V"])
def test_version(word, capsys):
    assert main([word]) == 0
    assert capsys.readouterr().out == f"cliplet {cliplet.__version__}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_explains_itself(verb, capsys):
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"usage: cliplet {verb}" in shown
    assert VERBS[verb].__doc__.split()[0] in shown


def test_unknown_command(fails):
    said = fails("evalute", "x")
    assert "there is no command 'evalute'" in said and "Did you mean evaluate" in said


def test_unknown_recipe(fails):
    for verb in ("recipes", "train"):
        said = fails(verb, "flickr9k")
        assert "there is no recipe 'flickr9k'" in said and "flickr8k" in said


def test_no_recipe(fails):
    said = fails("train", "--data.path", "x")
    assert "say what to train" in said and "demo" in said


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["train", "demo", "--train.seeed", "3"], "--train.seed"),
        (["train", "demo", "--train.seed", "three"], "--train.seed"),
        (["train", "demo", "--train.batch-size", "1"], "batch_size"),
        (["train", "demo", "--augment.crop-scale", "1", "0.5"], "crop_scale"),
        (["evaluate"], "Model or run folder"),
        (["evaluate", "a", "b", "--spilt", "val"], "--split"),
        (["recipes", "demo", "scratch"], "scratch"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_wrong_flags_name_the_right_ones(words, shown, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert shown in printed.err and printed.out == ""


def test_config_file_that_is_no_good(fails, tmp_path):
    file = tmp_path / "my.yaml"
    assert "cannot be read" in fails("train", "demo", "--config", tmp_path / "none.yaml")
    assert "cannot be read" in fails("train", "demo", "--config", tmp_path)
    assert "--config needs a value" in fails("train", "demo", "--config")
    file.write_text("train: [")
    assert f"{file}: not YAML" in fails("train", "demo", "--config", file)
    file.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in fails("train", "demo", f"--config={file}")
    file.write_text("train: {batchsize: 3}")
    said = fails("train", "demo", "--config", file)
    assert f"{file}: unknown key train.batchsize" in said and "batch_size" in said
    file.write_text("name: nobody")
    said = fails("train", "--config", file)  # a file alone is enough, but then it must name the data
    assert "no data set was named" in said


def test_flags_lie_over_the_file_and_the_file_over_the_recipe(fails, trained, tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("optim: {image_lr: 1e-5, text_lr: 2e-5}\ntrain: {stages: [{epochs: 2, text_blocks: 0}]}\n")
    flags = ["--optim.text-lr", "3e-5", "--data.max-images", "9", "--train.stages.0.image-blocks", "2"]
    fails("train", "finetune", *flags, "--config", file, "--resume", "--model.image.weights", "a.pt", "hub")
    config, resume, command = trained[0]
    yaml = (
        "optim: {image_lr: 1e-5, text_lr: 3e-5}\ndata: {max_images: 9}\nmodel: {image: {weights: [a.pt, hub]}}\n"
        "train: {stages: [{epochs: 2, image_blocks: 2, text_blocks: 0}]}"
    )
    assert config == from_yaml(yaml, base=recipe("finetune"))
    assert resume is True
    assert command.startswith("cliplet train finetune --optim.text-lr 3e-5") and "--resume" in command


def test_a_saved_configuration_names_its_recipe_itself(fails, trained, tmp_path):
    (tmp_path / "whole.yaml").write_text(to_yaml(recipe("scratch")))
    (tmp_path / "part.yaml").write_text("name: scratch\ntrain: {seed: 5}\n")
    fails("train", "--config", tmp_path / "whole.yaml")
    fails("train", "--config", tmp_path / "part.yaml")
    assert trained[0][0] == recipe("scratch")
    assert trained[1][0] == from_yaml("train: {seed: 5}", base=recipe("scratch"))
    assert trained[0][1] is False


def test_train_on_data_that_is_not_there(fails, tmp_path):
    assert "no such file" in fails(
        "train", "demo", "--data.path", tmp_path / "none", "--train.output", tmp_path / "run"
    )
    assert not (tmp_path / "run").exists()


def test_evaluate_what_is_not_there(fails, saved_model, data_set, tmp_path):
    assert "no such model folder" in fails("evaluate", tmp_path / "none", data_set)
    assert "no such file" in fails("evaluate", saved_model, tmp_path / "none")
    said = fails("evaluate", saved_model, data_set, "--split", "tset")
    assert "there is no split 'tset'" in said and "test (3)" in said
    said = fails("evaluate", saved_model, data_set, "--images", tmp_path / "none")
    assert "the picture folder does not exist" in said


def test_evaluate_json_that_is_none(fails, saved_model, tmp_path):
    file = tmp_path / "dataset.json"
    file.write_text('{"images": [')
    assert "is not JSON" in fails("evaluate", saved_model, file)
    file.write_text('{"pictures": []}')
    assert "Karpathy" in fails("evaluate", saved_model, file)


def test_evaluate_json_prints_json_only(saved_model, data_set, capsys):
    assert main(["evaluate", str(saved_model), str(data_set), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["split"] == "test" and result["left_out"] == 0
    assert result["metrics"]["images"] == 3 and result["metrics"]["captions"] == 6
    assert 0 <= result["metrics"]["image_to_text_R@1"] <= 100
    assert result["metrics"]["image_to_text_R@10"] >= result["metrics"]["image_to_text_R@5"]


def test_evaluate_leaves_a_bad_picture_out_and_says_so(saved_model, data_set, tmp_path, capsys):
    (data_set / "images" / "10.png").write_bytes(b"no picture")
    quarantine = tmp_path / "new" / "quarantine.jsonl"
    words = ["evaluate", str(saved_model), str(data_set), "--quarantine", str(quarantine)]
    assert main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["left_out"] == 1 and result["metrics"]["images"] == 2 and result["metrics"]["captions"] == 4
    assert "10.png" in quarantine.read_text()
    assert main(words) == 0
    table = capsys.readouterr().out
    assert "image→text" in table and "2 pictures" in table and "1 bad record" in table


def test_evaluate_with_no_picture_left(fails, saved_model, data_set):
    for file in (data_set / "images").iterdir():
        file.write_bytes(b"no picture")
    assert "none of 3 pictures could be read" in fails("evaluate", saved_model, data_set)


def test_a_quarantine_that_cannot_be_written_costs_no_figures(saved_model, data_set, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (data_set / "images" / "10.png").write_bytes(b"no picture")
    words = ["evaluate", saved_model, data_set, "--quarantine", tmp_path / "file" / "q.jsonl"]
    assert main([str(word) for word in words]) == 0
    printed = capsys.readouterr()
    assert "2 pictures" in printed.out and "1 bad record" in printed.out
    assert printed.err.count("cannot be written") == 1


def test_inspect_says_at_once_where_it_cannot_write(fails, data_set, tmp_path):
    for flag in ("--page", "--sheet", "--fix"):
        assert "cannot be written there" in fails("inspect", data_set, flag, tmp_path / "nowhere" / "x.html")


def test_inspect_model(saved_model, capsys):
    assert main(["inspect", str(saved_model)]) == 0
    shown = capsys.readouterr().out
    assert "0.4" in shown.splitlines()[0] and "M parameters" in shown and "name: test_resnet" in shown
    assert main(["inspect", str(saved_model), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["model"]["embed_dim"] == 16
    assert facts["bytes"] == (saved_model / "model.safetensors").stat().st_size


def test_inspect_model_shows_what_was_measured(model_copy, capsys):
    sides = {f"{way}_R@{k}": 12.25 for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)}
    ranks = {f"{way}_{kind}_rank": 7.0 for way in ("image_to_text", "text_to_image") for kind in ("median", "mean")}
    retrieval = {**sides, **ranks, "rsum": 73.5, "images": 1234, "captions": 6170}
    (model_copy / "metrics.json").write_text(json.dumps({"data": "boats", "split": "val", "retrieval": retrieval}))
    assert main(["inspect", str(model_copy)]) == 0
    shown = capsys.readouterr().out
    assert "boats, split val" in shown and "1,234 pictures" in shown and "73.5" in shown


def test_inspect_data_writes_the_page(data_set, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", str(data_set)]) == 0
    shown = capsys.readouterr().out
    assert "page: inspection.html" in shown and "6,000" not in shown and "train" in shown
    page = (tmp_path / "inspection.html").read_text()
    assert "Karpathy JSON" in page and "data:image/jpeg" in page
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["inspection.html"], "no sheet unasked"
    assert main(["inspect", str(data_set), "--page", "None", "--json", "--split", "val+test", "--samples", "2"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["pictures"] == 4 and facts["splits"] == {
        "val": {"pictures": 2, "captions": 4},
        "test": {"pictures": 2, "captions": 4},
    }
    assert (tmp_path / "inspection.html").read_text() == page


def test_inspect_data_draws_the_sheet(data_set, tmp_path, capsys):
    sheet, page = tmp_path / "sheet.png", tmp_path / "page.html"
    words = ["inspect", str(data_set), "--sheet", str(sheet), "--page", str(page)]
    assert main(words) == 0
    assert str(sheet.name) in capsys.readouterr().out.replace("\n", "")
    with Image.open(sheet) as image:
        assert min(image.size) > 100
    sheet.unlink()
    assert main([*words, "--json"]) == 0
    told = capsys.readouterr()
    facts = json.loads(told.out)
    assert facts["pictures"] == 12 and facts["captions"] == 24 and sheet.is_file()
    assert "page.html" in told.err


def test_inspect_data_counts_tokens(data_set, saved_model, fails, capsys):
    for model in (saved_model, saved_model / "tokenizer.json"):
        words = ["inspect", str(data_set), "--page", "None", "--json", "--model", str(model)]
        assert main(words) == 0
        tokens = json.loads(capsys.readouterr().out)["tokens"]
        assert tokens["context_length"] == (24 if model == saved_model else 32)
        assert tokens["tokenizer"] == str(model) and sum(tokens["histogram"].values()) == 24
        assert main([*words, "--context-length", "5"]) == 0
        cut = json.loads(capsys.readouterr().out)["tokens"]["cut"]
        assert cut == sum(count for length, count in tokens["histogram"].items() if int(length) > 5) > 0
    assert "needs --model" in fails("inspect", data_set, "--context-length", "5")
    assert "no tokenizer can be read" in fails("inspect", data_set, "--model", data_set)
    assert "tokenizer" in fails("inspect", data_set, "--model", data_set / "dataset.json")


def test_inspect_data_writes_a_cleaned_list(data_set, tmp_path, fails, capsys):
    (data_set / "images" / "10.png").write_bytes(b"broken")
    (data_set / "images" / "1.png").write_bytes((data_set / "images" / "9.png").read_bytes())
    words = ["inspect", str(data_set), "--page", str(tmp_path / "page.html"), "--fix", str(tmp_path / "clean.jsonl")]
    assert main(words) == 0
    told = capsys.readouterr().out.replace("\n", " ")
    assert "1 picture of test also stands in train" in told
    assert "10 pictures with 20 captions; left out: 1 that cannot be used, 1 that a more protected split holds" in told
    assert main(["inspect", str(tmp_path / "clean.jsonl"), "--page", "None", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["sound"] and facts["pictures"] == 10
    assert main(words) == 0, "its own list and page are written anew"
    capsys.readouterr()
    for file, words in (("notes.txt", ["--fix", "{}", "--page", "None"]), ("home.html", ["--page", "{}"])):
        (tmp_path / file).write_text("years of work")
        filled = [word.format(tmp_path / file) for word in words]
        assert "is there already" in fails("inspect", data_set, *filled)
        assert (tmp_path / file).read_text() == "years of work"


def test_inspect_what_is_neither(fails, model_copy, tmp_path):
    assert "no such file" in fails("inspect", tmp_path / "none")
    (model_copy / "model.safetensors").write_bytes(b"\x00" * 40)
    assert "is damaged" in fails("inspect", model_copy)
    (model_copy / "model.safetensors").unlink()
    assert "has no model.safetensors" in fails("inspect", model_copy)


def run_command(*words, **options):
    return subprocess.run(
        [sys.executable, "-m", "cliplet", *map(str, words)], capture_output=True, text=True, timeout=60, **options
    )


def test_as_a_process(tmp_path):
    done = run_command("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"cliplet {cliplet.__version__}\n", "")
    done = run_command("evaluate", "none", "none", cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: none") and "Traceback" not in done.stderr


def test_the_installed_command(tmp_path):
    script = Path(sys.executable).with_name("cliplet")
    if not script.exists():
        pytest.skip("the command is not installed beside this Python")
    done = subprocess.run([script, "recipes", "nope"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.startswith("error: there is no recipe 'nope'")


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
@pytest.mark.parametrize("words", [["recipes", "demo"], ["--help"], ["train", "demo", "--help"]], ids=" ".join)
def test_a_reader_that_goes_away_is_no_error(words, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)  # nobody reads: the sharpest case of `cliplet recipes demo | head -1`
    try:
        done = subprocess.run(
            [sys.executable, "-m", "cliplet", *words],
            cwd=tmp_path,
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    finally:
        os.close(writer)
    assert done.stderr == "" and done.returncode in (0, 1)


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell")
def test_head(tmp_path):
    command = f"'{sys.executable}' -m cliplet recipes demo | head -1"
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "name: demo\n", "")


def test_evaluate_never_overwrites_a_file_that_is_no_quarantine(saved_model, data_set, tmp_path, capsys):
    notes = tmp_path / "notes.txt"
    notes.write_text("years of work\n")
    assert main(["evaluate", str(saved_model), str(data_set), "--quarantine", str(notes)]) == 1
    assert notes.read_text() == "years of work\n"
    assert "no quarantine file" in capsys.readouterr().err


def test_the_recipe_may_stand_behind_resume(capsys):
    assert main(["train", "--resume", "flickr8k", "--train.output", "nowhere"]) == 1
    assert "no checkpoint" in capsys.readouterr().err


def test_inspect_tells_all_though_no_picture_can_be_drawn(data_set, tmp_path, capsys):
    for picture in (data_set / "images").iterdir():
        picture.write_bytes(b"")
    page = tmp_path / "page.html"
    assert main(["inspect", str(data_set), "--sheet", str(tmp_path / "sheet.png"), "--page", str(page)]) == 0
    assert "the file is empty" in page.read_text()
    assert "empty" in capsys.readouterr().out and not (tmp_path / "sheet.png").exists()


def test_a_path_in_brackets_is_no_markup(data_set, saved_model, tmp_path, capsys):
    import shutil

    odd = tmp_path / "odd [/red] name"
    shutil.copytree(data_set, odd)
    assert main(["evaluate", str(saved_model), str(odd), "--quarantine", str(tmp_path / "q.jsonl")]) == 0
    assert "[/red]" in capsys.readouterr().out


@pytest.fixture
def tuned_model(saved_model, tmp_path):
    """A run folder, with a model in it whose weights are those of `saved_model` and a half."""
    from cliplet.models import DualEncoder

    tuned = DualEncoder.from_pretrained(saved_model)
    for parameter in tuned.parameters():
        parameter.data.add_(0.5)
    tuned.save_pretrained(tmp_path / "run" / "model")
    return tmp_path / "run"


@pytest.mark.parametrize(("words", "moved"), [([], 0.25), (["--share", "0.2"], 0.1), (["--share=0"], 0.0)])
def test_interpolate_writes_a_model_that_opens(saved_model, tuned_model, words, moved, tmp_path, capsys):
    from safetensors.numpy import load_file

    out = tmp_path / "a mix"
    assert main(["interpolate", str(saved_model), str(tuned_model), str(out), *words]) == 0
    printed = capsys.readouterr().out
    assert "0.4 M parameters" in printed and f"cliplet evaluate '{out}' DATA" in printed
    start, mixed = (load_file(folder / "model.safetensors") for folder in (saved_model, out))
    gap = mixed["image_head.1.weight"] - start["image_head.1.weight"]
    assert abs(gap - moved).max() < 1e-6
    card = (out / "README.md").read_text()
    share = 2 * moved
    assert f"| weights | {1 - share:g} of {saved_model} + {share:g} of {tuned_model} (WiSE-FT" in card
    assert "# a mix" in card and "cliplet interpolate " in card
    assert cliplet.load(out).encode_text(["a red boat"]).shape == (1, 16)
    assert main(["inspect", str(out)]) == 0


def test_interpolate_what_does_not_go(fails, saved_model, tuned_model, tiny_config, captions, tmp_path):
    from cliplet.models import DualEncoder

    out = tmp_path / "out"
    for share in ("1.5", "-0.1", "nan"):
        assert "must lie from 0 to 1" in fails("interpolate", saved_model, tuned_model, out, f"--share={share}")
    assert "no such model folder" in fails("interpolate", tmp_path / "none", tuned_model, out)
    assert "is no model folder" in fails("interpolate", saved_model, tmp_path, out)
    DualEncoder.build(tiny_config.model_copy(update={"embed_dim": 8}), captions).save_pretrained(tmp_path / "other")
    said = fails("interpolate", saved_model, tmp_path / "other", out)
    assert "not the same model" in said and "model.embed_dim: 16 -> 8" in said and "start_from" in said
    assert not out.exists()
    before = (tuned_model / "model" / "README.md").stat().st_mtime_ns
    for place in (tuned_model / "model", tuned_model, saved_model):
        assert "is there already" in fails("interpolate", saved_model, tuned_model, place)
    assert (tuned_model / "model" / "README.md").stat().st_mtime_ns == before
