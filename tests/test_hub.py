"""Models by their name on the hub: the real client, against a hub on this machine."""

import json
import shutil
import time

import numpy as np
import pytest
import yaml
from fake_hub import FakeHub, Repository
from huggingface_hub import ModelCard, constants

import cliplet
from cliplet import hub as hub_module
from cliplet import model_folder
from cliplet.cli import main
from cliplet.errors import ModelError
from cliplet.evaluation.sources import refuse_missing
from cliplet.hub import fetched, is_hub_name
from cliplet.models.pretrained import open_model
from cliplet.publish import push

SIDES = {f"{way}_R@{k}": 10.5 * k for way in ("image_to_text", "text_to_image") for k in (1, 5)}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that is asked instead of the real one, by somebody who may write under `me`, with an empty cache."""
    with FakeHub() as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "mine")
        monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        yield served


@pytest.fixture
def offline(monkeypatch):
    """Called, it forbids to ask the hub."""
    return lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def features(encoder, captions):
    pictures = list(np.random.default_rng(0).integers(0, 256, (2, 37, 50, 3), dtype=np.uint8))
    short = [caption for caption in captions if len(caption) < 40]
    return encoder.encode_image(pictures), encoder.encode_text(short)


def exported(folder):
    """As if cliplet export had been here; what is in the graphs is of no matter to the hub."""
    (folder / "onnx").mkdir()
    for name in ("image.onnx", "text.onnx", "probe.npz"):
        (folder / "onnx" / name).write_bytes(name.encode())
    graphs = {tower: {"file": f"{tower}.onnx"} for tower in ("image", "text")}
    (folder / "onnx" / "parity.json").write_text(json.dumps({"graphs": graphs}))
    return {f"onnx/{name}" for name in ("image.onnx", "text.onnx", "probe.npz", "parity.json")}


def uploaded(hub, name, folder):
    """Puts a folder on the hub as it is, whatever it holds."""
    files = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    repository = hub.repositories.setdefault(name, Repository())
    repository.commit("main", files)
    return repository


@pytest.mark.parametrize(
    ("source", "is_name"),
    [
        ("owner/name", True),
        ("Owner-1/name_2.5", True),
        ("owner/name@main", True),
        ("owner/name@refs/pr/1", True),
        ("o/n@" + "0" * 40, True),
        ("name", False),
        ("", False),
        ("./owner/name", False),
        ("/owner/name", False),
        ("~/owner/name", False),
        ("../name", False),
        ("owner/..", False),
        ("owner/name/", False),
        ("runs/demo/model", False),
        ("owner\\name", False),
        ("owner/na me", False),
        ("owner/näme", False),
        ("owner/name@", False),
        ("owner/name@a..b", False),
        ("owner/-name", False),
        ("owner/a--b", False),
        ("open_clip:ViT-B-32/openai", False),
        ("hf:owner/name", False),
        ("runs/kept.npz", False),
        ("data/photo.jpg", False),
        ("owner/name\n", False),
    ],
)
def test_what_can_be_a_name_on_the_hub(source, is_name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_name(source) is is_name


def test_a_local_folder_goes_before_the_hub(hub, saved_model, tmp_path, monkeypatch, captions):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(saved_model, "me/model")
    assert not is_hub_name("me/model") and is_hub_name("me/other") and is_hub_name("me/model@main")
    features(cliplet.load("me/model"), captions)
    assert hub.asked == []


def test_pushed_and_loaded_by_name_it_is_the_same_model(hub, saved_model, captions, monkeypatch, offline):
    pushed = push(saved_model, "me/model", license_id="mit")
    assert pushed.url == f"{hub.url}/me/model" and pushed.commit.startswith(f"{pushed.url}/commit/")
    there = hub.repositories["me/model"].files()
    assert set(there) - {".gitattributes"} == {file.name for file in saved_model.iterdir()} == set(pushed.files)
    assert all(there[name] == (saved_model / name).read_bytes() for name in pushed.files if name != "README.md")
    assert len(hub.repositories["me/model"].commits) == 2  # that of the creation, and one of all files
    local = features(cliplet.load(saved_model), captions)
    for name in ("me/model", "me/model@main", f"me/model@{pushed.commit[-40:]}"):
        distant = features(cliplet.load(name), captions)
        assert all(np.array_equal(one, other) for one, other in zip(local, distant, strict=True))
    sent = len(hub.fetched())
    cliplet.load("me/model")
    assert len(hub.fetched()) == sent  # what is there is not fetched again
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody there
    assert np.array_equal(features(cliplet.load("me/model"), captions)[1], local[1])
    offline()
    assert np.array_equal(features(cliplet.load("me/model@main"), captions)[1], local[1])
    assert np.array_equal(features(cliplet.load(f"me/model@{pushed.commit[-40:]}"), captions)[1], local[1])


def test_a_later_push_is_seen_and_what_is_gone_is_gone(hub, model_copy, captions):
    graphs = exported(model_copy)
    repository = uploaded(hub, "me/model", model_copy)
    repository.commit("main", {"LICENSE": b"mine", "picture.png": b"somebody's"})
    assert (fetched("me/model") / "onnx" / "image.onnx").is_file()
    shutil.rmtree(model_copy / "onnx")
    pushed = push(model_copy, "me/model")
    assert set(pushed.removed) == graphs  # these would compute what an earlier model said
    assert {"LICENSE", "picture.png", "model.safetensors"} <= set(repository.files())
    assert not (fetched("me/model") / "onnx").exists()
    features(cliplet.load("me/model"), captions)


def test_torchs_side_opens_it_too(hub, saved_model, tmp_path, capsys, data_set):
    push(saved_model, "me/model")
    assert open_model("me/model").config == open_model(saved_model).config
    assert main(["interpolate", "me/model", str(saved_model), str(tmp_path / "out")]) == 0
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.base_model == ["me/model"]
    capsys.readouterr()
    refuse_missing("me/model")
    with pytest.raises(ModelError, match="no such model"):
        refuse_missing("me/other")
    assert main(["evaluate", "me/model@main", str(data_set), "--split", "val", "--json", "--resamples", "100"]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == "cliplet-evaluation"


def test_sentence_transformers_opens_it_by_its_name(hub, saved_model, captions):
    from sentence_transformers import SentenceTransformer

    from cliplet.sentence_transformer import ClipletModule

    push(saved_model, "me/model")
    expected = features(cliplet.load(saved_model), captions)[1]
    texts = [caption for caption in captions if len(caption) < 40]
    by_name = SentenceTransformer("me/model", trust_remote_code=True, device="cpu")
    by_module = SentenceTransformer(modules=[ClipletModule("me/model")], device="cpu")
    for model in (by_name, by_module):
        np.testing.assert_allclose(model.encode(texts), expected, atol=1e-6)


def test_teachers_may_be_on_the_hub(hub, saved_model, offline, tmp_path, monkeypatch):
    import torch

    from cliplet.training.start import start_model
    from cliplet.training.teachers import identity, known_facts, open_teacher

    push(saved_model, "me/model")
    assert identity("me/model") == ("me/model", "") and known_facts("me/model") == {}  # nobody is asked
    assert hub.fetched() == []
    teacher = open_teacher("me/model", torch.device("cpu"), "fp32")
    local = open_teacher(saved_model, torch.device("cpu"), "fp32")
    assert teacher.info.weights == local.info.weights != "" and teacher.info.name == "me/model"
    offline()
    assert identity("me/model")[1] == local.info.weights
    assert known_facts("me/model") == known_facts(saved_model) != {}
    assert start_model("me/model", open_model(saved_model).config)


def test_only_what_a_model_is_made_of_is_fetched(hub, model_copy):
    exported(model_copy)
    (model_copy / "pytorch_model.bin").write_bytes(b"a pickle")
    (model_copy / "onnx" / "more.pkl").write_bytes(b"a pickle")
    (model_copy / "program.py").write_text("print('hello')")
    uploaded(hub, "me/model", model_copy)
    folder = fetched("me/model")
    got = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    own = {"config.json", "tokenizer.json", "metrics.json", "README.md", "modules.json"}
    assert got == own | {f"onnx/{name}" for name in ("image.onnx", "text.onnx", "probe.npz", "parity.json")}
    assert fetched("me/model", weights=True) == folder and (folder / "model.safetensors").is_file()


def test_without_weights_there_are_none_to_be_had(hub, model_copy):
    exported(model_copy)
    (model_copy / "model.safetensors").unlink()
    uploaded(hub, "me/model", model_copy)
    assert (fetched("me/model") / "onnx" / "text.onnx").is_file()
    with pytest.raises(ModelError, match="was pushed without its weights"):
        fetched("me/model", weights=True)
    with pytest.raises(ModelError, match="was pushed without its weights"):
        open_model("me/model")


def test_offline_with_an_empty_cache_and_with_a_part(hub, model_copy, offline, monkeypatch):
    exported(model_copy)
    uploaded(hub, "me/model", model_copy)
    fetched("me/model")
    offline()
    with pytest.raises(ModelError) as caught:
        fetched("me/other")
    assert "not in the hub's cache, and HF_HUB_OFFLINE forbids" in caught.value.message
    assert "once with a connection" in caught.value.hint and "local model folder" in caught.value.hint
    with pytest.raises(ModelError, match="not in the hub's cache"):
        fetched("me/model@branch")
    folder = fetched("me/model")
    with pytest.raises(ModelError, match=r"only a part of it is in the hub's cache, without model\.safetensors, and"):
        fetched("me/model", weights=True)
    (folder / "onnx" / "text.onnx").unlink()
    with pytest.raises(ModelError, match=r"only a part .* without onnx/text\.onnx, and HF_HUB_OFFLINE"):
        fetched("me/model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert fetched("me/model") == folder and (folder / "onnx" / "text.onnx").read_bytes() == b"text.onnx"


def test_a_hub_out_of_order_is_as_none(hub, saved_model):
    push(saved_model, "me/model")
    folder = fetched("me/model")
    for hub.status in (503, 429, 404):  # broken, too busy, and something that is no hub
        assert fetched("me/model") == folder
        with pytest.raises(ModelError, match=f"not in the hub's cache, and the hub answers with error {hub.status}"):
            fetched("me/other")


def test_a_hub_that_hangs_is_given_up_soon(hub, saved_model, monkeypatch):
    push(saved_model, "me/model")
    fetched("me/model")
    monkeypatch.setattr(hub_module, "SECONDS_TO_ANSWER", 0.5)
    hub.hangs = True
    begun = time.monotonic()
    assert fetched("me/model").is_dir()
    with pytest.raises(ModelError, match="the hub does not answer"):
        fetched("me/other")
    with pytest.raises(ModelError, match="the hub does not answer"):
        push(saved_model, "me/model")
    assert time.monotonic() - begun < 5  # three times half a second, and something
    hub.hangs = False


REFUSED = {
    "unknown": ("me/none", "is no folder here, and on the hub there is no such model, or it is private", "auth login"),
    "private": ("you/secret", "there is no such model, or it is private", "hf auth login"),
    "gated": ("you/gated", "its owner decides who may have it", "hf auth login"),
    "revision": ("you/open@v2", "has no such revision", "branch, a tag or a commit"),
    "other tool": ("you/bert", "is on the hub, but is a model of another tool", "cliplet import"),
    "no model": ("you/empty", r"is no model of cliplet: it has no config\.json", "cliplet"),
    "no weights": ("you/half", r"is no model of cliplet: it has no model\.safetensors", "cliplet"),
}


@pytest.mark.parametrize(("name", "said", "hint"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_to_be_had_is_said(hub, saved_model, name, said, hint, capsys, tmp_path):
    files = {file.name: file.read_bytes() for file in saved_model.iterdir()}
    for repository, (kind, changes) in {
        "you/secret": ({"private": True}, files),
        "you/gated": ({"gated": True}, files),
        "you/open": ({}, files),
        "you/bert": ({}, {**files, "config.json": b'{"model_type": "bert"}'}),
        "you/empty": ({}, {"weights.bin": b"a pickle"}),
        "you/half": ({}, {file: files[file] for file in files if file != "model.safetensors"}),
    }.items():
        hub.repositories[repository] = Repository(**kind)
        hub.repositories[repository].commit("main", changes)
    with pytest.raises(ModelError, match=said) as caught:
        cliplet.load(name)
    assert name in caught.value.message and hint in caught.value.hint
    assert set(hub.fetched()) <= {"config.json"}  # the large ones are not fetched in vain
    assert main(["interpolate", name, str(saved_model), str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith(f"error: {name}: ")


def test_a_token_that_is_none(hub, saved_model, monkeypatch):
    push(saved_model, "me/model")
    monkeypatch.setenv("HF_TOKEN", "nonsense")
    for do in (lambda: fetched("me/model"), lambda: push(saved_model, "me/model")):
        with pytest.raises(ModelError, match="does not accept your token") as caught:
            do()
        assert "hf auth login" in caught.value.hint


def test_pushing_needs_a_login_a_right_and_a_network(hub, saved_model, monkeypatch, offline):
    with pytest.raises(ModelError, match="you may not push to you") as caught:
        push(saved_model, "you/model")
    assert "hf auth login" in caught.value.hint
    hub.repositories["you/model"] = Repository()
    with pytest.raises(ModelError, match="you may not push to you"):
        push(saved_model, "you/model")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ModelError, match="not logged in"):
        push(saved_model, "me/model")
    monkeypatch.setenv("HF_TOKEN", "mine")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelError, match="the hub does not answer"):
        push(saved_model, "me/model")
    offline()
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE forbids"):
        push(saved_model, "me/model")
    assert "me/model" not in hub.repositories and len(hub.repositories["you/model"].commits) == 1


@pytest.mark.parametrize("name", ["model", "a/b/c", "me/mo del", "me/", "me/..", "me/mödel", "me/a--b", "", "me/x.git"])
def test_bad_names_are_refused_before_anything_is_asked(hub, saved_model, name):
    with pytest.raises(ModelError, match="cannot be the name of a model") as caught:
        push(saved_model, name)
    assert "OWNER/NAME" in caught.value.hint and hub.asked == []


def test_bad_branches_licences_and_folders_are_refused(hub, saved_model, model_copy, tmp_path):
    with pytest.raises(ModelError) as caught:
        push(saved_model, "me/model@v1")
    assert "me/model --revision v1" in caught.value.hint
    with pytest.raises(ModelError, match="branch"):
        push(saved_model, "me/model", revision="a b")
    with pytest.raises(ModelError, match="licence"):
        push(saved_model, "me/model", license_id="Do what you like")
    with pytest.raises(ModelError, match="no such model folder"):
        push(tmp_path / "none", "me/model")
    (model_copy / "model.safetensors").write_bytes(b"half")
    with pytest.raises(ModelError, match="damaged"):
        push(model_copy, "me/model")
    assert hub.asked == []


def test_what_the_hub_finds_wrong_with_the_card_is_said(hub, saved_model, model_copy):
    with pytest.raises(ModelError, match=r'was not pushed: .*"license" must be one of'):
        push(saved_model, "me/model", license_id="nonsense")
    assert set(hub.repositories["me/model"].files()) == {".gitattributes"}
    hub.warning = "a card could say more"
    heard = []
    push(saved_model, "me/model", say=heard.append)
    assert len(heard) == 1 and "a card could say more" in heard[0]
    (model_copy / "README.md").write_text("---\na: b: c\n---\n")
    with pytest.raises(ModelError, match=r"README\.md: what stands between the dashes is no YAML"):
        push(model_copy, "me/model")


def test_stray_files_are_left_and_named(hub, model_copy):
    for name in (".env", "pytorch_model.bin", "optimizer.pt", "state.pkl", "notes.txt", "train.py"):
        (model_copy / name).write_text("secret")
    (model_copy / ".git").mkdir()
    graphs = exported(model_copy)
    (model_copy / "onnx" / ".hidden.json").write_text("secret")
    (model_copy / "onnx" / "old.bin").write_text("secret")
    (model_copy / "LICENSE").write_text("MIT")
    own, left = model_folder.contents(model_copy)
    stray = {".env", ".git/", "pytorch_model.bin", "optimizer.pt", "state.pkl", "notes.txt", "train.py"}
    assert set(left) == stray | {"onnx/.hidden.json", "onnx/old.bin"}
    assert graphs | {"LICENSE", "modules.json"} <= set(own) and not set(own) & set(left)
    shutil.rmtree(model_copy / "onnx")
    pushed = push(model_copy, "me/model")
    assert set(pushed.left) == stray
    assert not any(b"secret" in content for content in hub.repositories["me/model"].files().values())


def test_a_branch(hub, saved_model, captions):
    push(saved_model, "me/model")
    before = dict(hub.repositories["me/model"].branches)
    pushed = push(saved_model, "me/model", revision="v1/small", license_id="mit")
    branches = hub.repositories["me/model"].branches
    assert branches["main"] == before["main"] and branches["v1/small"] == pushed.commit[-40:]
    assert "license: mit" in (fetched("me/model@v1/small") / "README.md").read_text()
    assert "license: unknown" in (fetched("me/model") / "README.md").read_text()
    features(cliplet.load("me/model@v1/small"), captions)


def test_private_stays_private_and_public_is_not_made_so(hub, saved_model, monkeypatch):
    push(saved_model, "me/secret", private=True)
    push(saved_model, "me/secret")
    assert hub.repositories["me/secret"].private
    fetched("me/secret")
    monkeypatch.setenv("HF_TOKEN", "theirs")
    with pytest.raises(ModelError, match="no such model, or it is private"):
        fetched("me/secret")
    monkeypatch.setenv("HF_TOKEN", "mine")
    push(saved_model, "me/open")
    with pytest.raises(ModelError, match="everybody can see it"):
        push(saved_model, "me/open", private=True)


def test_the_verb_pushes_a_runs_best_model(hub, model_copy, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    model_copy.rename(run / "model")
    (run / "model" / ".env").write_text("secret")
    assert main(["push", str(run), "me/model", "--license", "apache-2.0", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["format"] == "cliplet-push" and told["model"] == str(run / "model")
    assert told["left"] == [".env"] and told["removed"] == [] and told["url"] == f"{hub.url}/me/model"
    assert main(["push", str(run), "me/model", "--revision", "v2"]) == 0
    out = capsys.readouterr().out
    assert "left:    .env" in out and "cliplet.load('me/model@v2')" in out
    assert main(["push", str(run), "me model"]) == 1
    assert "cannot be the name" in capsys.readouterr().err


def test_the_pushed_card_says_what_hubs_read_and_keeps_what_was_written(hub, model_copy):
    metrics = {"data": 'Bob\'s: "photos" ünï', "split": "val", "retrieval": {**SIDES, "rsum": float("nan")}}
    (model_copy / "metrics.json").write_text(json.dumps(metrics))
    by_hand = "---\n# by hand\nlicense: unknown\nlanguage:\n- nl\ntags: [mine]\n---\n# Mine: \u00fc\n\ntext --- text\n"
    (model_copy / "README.md").write_text(by_hand, encoding="utf-8")
    before = {file.name: file.read_bytes() for file in model_copy.iterdir()}
    push(model_copy, "me/model.1", license_id="cc-by-4.0")
    assert {file.name: file.read_bytes() for file in model_copy.iterdir()} == before  # here nothing is changed
    text = hub.repositories["me/model.1"].files()["README.md"].decode()
    assert text.startswith("---\n# by hand\nlanguage:\n- nl\ntags: [mine]\n")
    assert text.endswith("---\n# Mine: \u00fc\n\ntext --- text\n") and text.count("license:") == 1
    data = ModelCard.load("me/model.1").data  # by the hub's own client
    assert data.license == "cc-by-4.0" and data.language == ["nl"] and data.tags == ["mine"]
    assert data.library_name == "cliplet" and data.pipeline_tag == "feature-extraction"
    assert data.model_name == "model.1"
    results = {result.metric_type: result for result in data.eval_results}
    assert {name: result.metric_value for name, result in results.items()} == SIDES
    assert all(result.dataset_name == metrics["data"] for result in results.values())
    assert {(one.task_type, one.dataset_split) for one in results.values()} == {("image-text-retrieval", "val")}
    with pytest.raises(ModelError, match=r"says that the licence is gpl, not mit"):
        (model_copy / "README.md").write_text("---\nlicense: gpl\n---\n")
        push(model_copy, "me/model.1", license_id="mit")


HEADS = {
    "none": "",
    "empty": "---\n---\n",
    "on one line": "---\n{license: unknown, a: 1}\n---\n",
    "of Windows": "---\r\nlicense: \r\na: 1\r\n---\r\n",
    "with a block": "---\na: |\n  x\n---\n",
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_cards_of_any_form_are_completed(head):
    from cliplet.card_metadata import completed, metadata

    card = completed(f"{head}# text\n", "README.md", metadata(), "mit")
    data = yaml.safe_load(card.split("---")[1])
    assert data["license"] == "mit" and data["library_name"] == "cliplet" and card.endswith("# text\n")
    assert ("a" in data) == ("a:" in head) and card.count("license") == 1
    assert completed(card, "README.md", metadata(), "mit") == card
    assert ModelCard(card).data.license == "mit"


def test_cards_from_training_name_data_models_and_results():
    from cliplet.model_card import imported_card, mixture_card, model_card
    from cliplet.recipes import recipe

    ranks = {f"{way}_{kind}_rank": 7.0 for way in ("image_to_text", "text_to_image") for kind in ("median", "mean")}
    tens = {f"{way}_R@10": 99.0 for way in ("image_to_text", "text_to_image")}
    metrics = {**SIDES, **tens, **ranks, "rsum": 320.0, "images": 1234, "captions": 6170}
    config = recipe("finetune")
    odd = {"name": 'a "b": ü', "data": config.data.model_copy(update={"path": "hf:owner/photos:small"})}
    data = ModelCard(model_card(config.model_copy(update=odd), 25_120_000, metrics, "")).data
    assert data.license == "unknown" and data.datasets == ["owner/photos"] and data.model_name == odd["name"]
    assert data.base_model == ["sentence-transformers/all-MiniLM-L6-v2"]
    assert {one.metric_type: one.metric_value for one in data.eval_results} == {**SIDES, **tens}
    plain = ModelCard(model_card(recipe("scratch"), 1, {}, "")).data
    assert plain.base_model is None and plain.datasets is None and plain.eval_results is None
    mixed = ModelCard(mixture_card(config.model, "x: y", "me/a@v1", "runs/b/model", 0.5, 1, "")).data
    assert mixed.base_model == ["me/a"]
    assert ModelCard(imported_card(config.model, "n", "open_clip:ViT-B-32/openai", 1, "")).data.base_model is None


def test_no_folder_here_ever_needs_the_client(saved_model, run_python, tmp_path):
    code = (
        "import sys\n"
        "from cliplet.hub import is_hub_name\n"
        "from cliplet.cli import main\n"
        "assert not is_hub_name(sys.argv[1]) and is_hub_name('owner/name')\n"
        "assert main(['inspect', sys.argv[1]]) == 0\n"
        "print([name for name in ('huggingface_hub', 'torch', 'httpx') if name in sys.modules])"
    )
    assert run_python(code, tmp_path, saved_model).stdout.strip().endswith("[]")


def test_pushing_and_fetching_need_no_torch(hub, saved_model, run_python, tmp_path):
    code = (
        "import sys\n"
        "from cliplet.cli import main\n"
        "from cliplet.hub import fetched\n"
        "assert main(['push', sys.argv[1], 'me/model']) == 0\n"
        "print(fetched('me/model'))\n"
        "assert 'torch' not in sys.modules"
    )
    around = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "mine",
    }
    done = run_python(code, tmp_path, saved_model, **around)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "home") in done.stdout and "model.safetensors" in done.stdout
