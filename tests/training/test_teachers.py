"""Teachers: their features are those of the models they are made of, whoever computes these."""

import dataclasses
import hashlib
import json
import shutil
import string

import numpy as np
import pytest
import safetensors.torch
import torch
from engine import build
from torch.nn import functional as F

from cliplet.config import PreprocessConfig, TemperatureConfig
from cliplet.data.batch import Batch
from cliplet.data.records import ImageText, Records
from cliplet.errors import ModelError, TrainingError
from cliplet.models import DualEncoder
from cliplet.training import teachers as teachers_module
from cliplet.training.teachers import LiveTeachers, Teacher, identity, open_teacher

CPU = torch.device("cpu")
VIT = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}


def noise(count, size=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def larger_model(tiny_config, captions, tmp_path_factory):
    """A model folder of pictures of 48 pixels, width 24 and a dynamic temperature."""
    torch.manual_seed(1)
    config = tiny_config.model_copy(
        update={
            "embed_dim": 24,
            "preprocess": PreprocessConfig(image_size=48, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)),
            "temperature": TemperatureConfig(kind="dynamic"),
        }
    )
    folder = tmp_path_factory.mktemp("larger") / "model"
    DualEncoder.build(config, captions).save_pretrained(folder)
    return folder


# -- cliplet's own models


def test_a_teacher_gives_the_features_of_its_model(saved_model, captions):
    model = DualEncoder.from_pretrained(saved_model)
    teacher = open_teacher(saved_model, CPU, "fp32")
    texts = [f"{captions[number % 5]} {string.ascii_lowercase[: number % 7]}" for number in range(300)]
    pixels = noise(70)  # more than are computed at once
    with torch.no_grad():
        image_BT = model.encode_image(pixels)
        alone_CT = [model.encode_text(*map(torch.from_numpy, model.tokenizer([text]))) for text in texts[:40]]
    torch.testing.assert_close(teacher.image_features(pixels), image_BT, atol=1e-6, rtol=0)
    text_CT = teacher.text_features(texts)
    assert text_CT.shape == (300, 16) and text_CT.dtype == torch.float32
    torch.testing.assert_close(text_CT[:40], torch.cat(alone_CT), atol=1e-6, rtol=0)
    torch.testing.assert_close(text_CT.norm(dim=1), torch.ones(300))
    assert len(torch.unique(text_CT[:40].round(decimals=4), dim=0)) > 20  # else their order would say nothing


def test_nothing_is_asked_of_no_captions(saved_model):
    assert open_teacher(saved_model, CPU, "fp32").text_features([]).shape == (0, 16)


def test_a_teacher_says_who_it_is(saved_model, larger_model):
    info = open_teacher(saved_model, CPU, "fp32").info
    model = DualEncoder.from_pretrained(saved_model)
    assert info.name == str(saved_model)
    assert info.weights == hashlib.sha256((saved_model / "model.safetensors").read_bytes()).hexdigest()
    assert (info.image_size, info.embed_dim, info.precision) == (32, 16, "fp32")
    assert (info.mean, info.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert info.logit_scale == pytest.approx(float(model.logit_scale.detach())) and info.logit_scale > 1
    other = open_teacher(larger_model, CPU, "fp32").info
    assert other.logit_scale is None  # it depends on the batch
    assert other.weights != info.weights and len(other.tokenizer) == 64


def test_a_teacher_is_frozen_and_part_of_no_model(saved_model):
    teacher = open_teacher(saved_model, CPU, "fp32")
    assert isinstance(teacher, Teacher) and not isinstance(teacher, torch.nn.Module)
    image_BT = teacher.image_features(noise(2))
    assert not image_BT.requires_grad
    student = torch.nn.Linear(16, 16)
    (student(image_BT) @ teacher.text_features(["boat"]).T).sum().backward()  # features are fit for a loss
    assert student.weight.grad.abs().sum() > 0
    again = teacher.image_features(noise(2))
    assert torch.equal(again, image_BT)  # no dropout, no moving statistics


def test_in_mixed_precision_features_are_float32_still(saved_model):
    exact, rough = (open_teacher(saved_model, CPU, name) for name in ("fp32", "bf16"))
    expected, features = exact.image_features(noise(4)), rough.image_features(noise(4))
    assert features.dtype == torch.float32 and rough.info.precision == "bf16"
    assert 0 < (features - expected).abs().max() < 0.05
    texts = rough.text_features(["a red boat", "two dogs"])
    assert texts.dtype == torch.float32
    torch.testing.assert_close(texts, exact.text_features(["a red boat", "two dogs"]), atol=0.05, rtol=0)


def test_a_run_folder_is_a_teacher_by_its_best_model(saved_model, tmp_path):
    shutil.copytree(saved_model, tmp_path / "run" / "model")
    info = open_teacher(tmp_path / "run", CPU, "fp32").info
    assert info.name == str(tmp_path / "run")
    assert info.weights == identity(saved_model)[1] != ""


def test_a_teacher_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ModelError, match="nowhere"):
        open_teacher(tmp_path / "nowhere", CPU, "fp32")


# -- identities


def test_an_identity_needs_the_weights_file_and_nothing_else(tmp_path, saved_model, monkeypatch):
    monkeypatch.setattr(teachers_module, "open_for_features", None)
    folder = tmp_path / "model"
    shutil.copytree(saved_model, folder)
    (folder / "model.safetensors").write_bytes(b"no weights")
    assert identity(folder) == (str(folder), hashlib.sha256(b"no weights").hexdigest())
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"others")
    assert identity(f"open_clip:ViT-B-32/{file}")[1] == hashlib.sha256(b"others").hexdigest()


def test_without_a_file_a_teacher_is_known_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "openai").write_bytes(b"a file that has the name of a tag")
    assert identity("open_clip:ViT-B-32/openai") == ("open_clip:ViT-B-32/openai", "")
    assert identity(f"open_clip:ViT-B-32/{tmp_path}/gone.safetensors")[1] == ""
    assert identity(tmp_path / "nowhere")[1] == ""


# -- OpenCLIP's


@pytest.fixture(scope="module")
def their_model(make_bert, tmp_path_factory):
    """The folder of an OpenCLIP architecture `teacher-bert`, whose text side is a Hugging Face model, with weights."""
    open_clip = pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("theirs")
    bert = make_bert(folder / "bert")
    text = {"hf_model_name": str(bert), "hf_tokenizer_name": str(bert), "context_length": 16}
    described = {
        "embed_dim": 24,
        "vision_cfg": VIT,
        "text_cfg": {**text, "hf_proj_type": "mlp", "hf_pooler_type": "mean_pooler"},
    }
    (folder / "architectures").mkdir()
    (folder / "architectures" / "teacher-bert.json").write_text(json.dumps(described))
    open_clip.add_model_config(folder / "architectures")
    torch.manual_seed(0)
    model = open_clip.create_model("teacher-bert", pretrained_text=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    weights["logit_scale"].fill_(3.5)
    safetensors.torch.save_file(weights, folder / "weights.safetensors")
    return folder


def test_a_model_with_a_hugging_face_text_side_teaches_as_open_clip_computes_it(their_model, captions):
    import open_clip

    file = their_model / "weights.safetensors"
    theirs = open_clip.create_model("teacher-bert", pretrained=str(file)).eval()
    teacher = open_teacher(f"open_clip:teacher-bert/{file}", CPU, "fp32")
    pixels = noise(5)
    mean, std = torch.tensor([open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD])[..., None, None]
    with torch.no_grad():
        image_BT = F.normalize(theirs.encode_image((pixels / 255 - mean) / std))
        text_CT = F.normalize(theirs.encode_text(open_clip.get_tokenizer("teacher-bert")(captions)))
    torch.testing.assert_close(teacher.image_features(pixels), image_BT, atol=1e-5, rtol=0)
    torch.testing.assert_close(teacher.text_features(captions), text_CT, atol=1e-5, rtol=0)
    assert torch.pdist(text_CT).min() > 1e-3
    info = teacher.info
    assert info.weights == hashlib.sha256(file.read_bytes()).hexdigest()
    assert info.logit_scale == pytest.approx(np.exp(3.5)) and (info.embed_dim, info.image_size) == (24, 32)
    assert info.mean == open_clip.OPENAI_DATASET_MEAN


def test_a_tokenizer_that_no_tokenizer_json_expresses_is_open_clips_own(their_model, captions, tmp_path):
    import open_clip
    from transformers import PreTrainedTokenizerFast

    special = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "bos": "[CLS]", "eos": "[SEP]"}
    PreTrainedTokenizerFast(
        tokenizer_file=str(their_model / "bert" / "tokenizer.json"),
        **{f"{name}_token": token for name, token in special.items()},
    ).save_pretrained(tmp_path / "clips")
    text = {"context_length": 16, "vocab_size": 64, "width": 32, "heads": 4, "layers": 1}
    text |= {"tokenizer_mode": "clips", "hf_tokenizer_name": str(tmp_path / "clips")}
    (tmp_path / "teacher-clips.json").write_text(json.dumps({"embed_dim": 24, "vision_cfg": VIT, "text_cfg": text}))
    open_clip.add_model_config(tmp_path / "teacher-clips.json")
    theirs = open_clip.create_model("teacher-clips").eval()
    file = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in theirs.state_dict().items()}, file)
    teacher = open_teacher(f"open_clip:teacher-clips/{file}", CPU, "fp32")
    with torch.no_grad():
        text_CT = F.normalize(theirs.encode_text(open_clip.get_tokenizer("teacher-clips")(captions)))
    torch.testing.assert_close(teacher.text_features(captions), text_CT, atol=1e-5, rtol=0)


def test_a_tokenizer_beside_the_weights_goes_before_the_architectures(their_model, make_bert, tmp_path):
    before = open_teacher(f"open_clip:teacher-bert/{their_model / 'weights.safetensors'}", CPU, "fp32")
    shutil.copy(their_model / "weights.safetensors", tmp_path)
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(their_model / "bert" / name, tmp_path)
    source = f"open_clip:teacher-bert/{tmp_path / 'weights.safetensors'}"
    same = open_teacher(source, CPU, "fp32")
    assert dataclasses.replace(same.info, name=before.info.name) == before.info
    vocabulary = json.loads((tmp_path / "tokenizer.json").read_text())
    words = vocabulary["model"]["vocab"]
    words["boat"], words["dogs"] = words["dogs"], words["boat"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(vocabulary))
    swapped = open_teacher(source, CPU, "fp32")
    texts = swapped.text_features(["red boat", "red dogs"])
    torch.testing.assert_close(texts, before.text_features(["red dogs", "red boat"]))


def test_weights_that_do_not_fit_are_refused(their_model, tmp_path):
    weights = safetensors.torch.load_file(their_model / "weights.safetensors")
    del weights["text.proj.0.weight"]
    weights["logit_bias"] = torch.tensor([-10.0])  # has no part in features
    weights["text.transformer.embeddings.position_ids"] = torch.arange(24)[None]  # of older transformers
    safetensors.torch.save_file(weights, tmp_path / "few.safetensors")
    with pytest.raises(ModelError, match=r"do not fit: 1 missing \(text.proj.0.weight\)$"):
        open_teacher(f"open_clip:teacher-bert/{tmp_path / 'few.safetensors'}", CPU, "fp32")


def test_what_is_not_there_is_named_and_nothing_is_fetched(their_model, tmp_path):
    with pytest.raises(ModelError, match="no such file"):
        open_teacher(f"open_clip:teacher-bert/{tmp_path / 'gone.safetensors'}", CPU, "fp32")
    with pytest.raises(ModelError, match="no OpenCLIP architecture 'teacher-brt'"):
        open_teacher(f"open_clip:teacher-brt/{their_model / 'weights.safetensors'}", CPU, "fp32")
    shutil.move(their_model / "bert", tmp_path / "bert")
    try:
        with pytest.raises(ModelError, match="cannot build teacher-bert"):
            open_teacher(f"open_clip:teacher-bert/{their_model / 'weights.safetensors'}", CPU, "fp32")
    finally:
        shutil.move(tmp_path / "bert", their_model / "bert")


# -- teachers in a run


def test_live_teachers_see_their_own_pixels_and_the_captions_of_the_batch(saved_model, larger_model, captions):
    records = Records.of(
        [ImageText("a", tuple(captions[:2])), ImageText("b", (captions[2],)), ImageText("c", tuple(captions[2:]))]
    )
    live = LiveTeachers([str(saved_model), str(larger_model)], records, CPU, "fp32")
    assert live.sizes == [32, 48] and [info.embed_dim for info in live.infos] == [16, 24]
    pixels = {32: noise(2), 48: noise(2, 48)}
    # Pictures c and a; of all captions 0 1 | 2 | 3 4 5 the last of c, its first, and the second of a.
    batch = Batch(
        None,
        None,
        None,
        torch.tensor([0, 0, 1]),
        rows_B=np.array([2, 0]),
        caption_rows_C=np.array([5, 3, 1]),
        teacher_pixels=pixels,
    )
    taught = live.taught(batch)
    assert taught.teacher_pixels == {} and taught.rows_B is batch.rows_B
    for folder, size, (image_BT, text_CT) in zip((saved_model, larger_model), (32, 48), taught.teachers, strict=True):
        alone = open_teacher(folder, CPU, "fp32")
        torch.testing.assert_close(image_BT, alone.image_features(pixels[size]))
        torch.testing.assert_close(text_CT, alone.text_features([captions[4], captions[2], captions[1]]))


def test_captions_are_found_in_a_view_of_the_records(saved_model, captions):
    records = Records.of([ImageText(name, (f"one {name}", f"two {name}")) for name in "abcd"])
    live = LiveTeachers([str(saved_model)], records.picked(np.array([3, 1])), CPU, "fp32")
    assert live._captions(np.array([0, 3, 2, 1])) == ["one d", "two b", "one b", "two d"]


def test_a_run_without_teachers_has_none(saved_model):
    with pytest.raises(TrainingError, match="no teacher is named"):
        LiveTeachers([], Records.of([]), CPU, "fp32")


def test_a_learned_scale_is_what_the_model_multiplies_cosines_with(tmp_path):
    model = build()
    with torch.no_grad():
        model.temperature.log_scale.fill_(2.0)
    model.save_pretrained(tmp_path / "model")
    assert open_teacher(tmp_path / "model", CPU, "fp32").info.logit_scale == pytest.approx(np.exp(2.0))
