"""Starting a run from the model of another."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from cliplet.config import (
    DataConfig,
    HeadConfig,
    ModelConfig,
    PreprocessConfig,
    RunConfig,
    StageConfig,
    TemperatureConfig,
    TextTowerConfig,
    TokenizerConfig,
    TrainConfig,
)
from cliplet.errors import ClipletError, TrainingError
from cliplet.models import DualEncoder
from cliplet.training import train, trainer
from cliplet.training.start import start_model

FROZEN = {"image_blocks": 0, "text_blocks": 0}


def changed(config: ModelConfig, part: str = "", **values) -> ModelConfig:
    """The configuration with values in one part of it changed."""
    if not part:
        return config.model_copy(update=values)
    return config.model_copy(update={part: getattr(config, part).model_copy(update=values)})


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_same(weights, others):
    assert weights.keys() == others.keys()
    for name, tensor in weights.items():
        assert torch.equal(tensor, others[name]), f"{name} differs"


@pytest.fixture
def tiny(data_set, tiny_config, tmp_path):
    """A run of 2 epochs of 2 steps that trains the heads only."""

    def make(start_from, output="run", model=tiny_config, **settings):
        return RunConfig(
            name="tiny",
            data=DataConfig(path=str(data_set), workers=1),
            model=model,
            train=TrainConfig(
                **{
                    "output": str(tmp_path / output),
                    "start_from": str(start_from),
                    "batch_size": 3,
                    "stages": (StageConfig(epochs=2, **FROZEN),),
                    "precision": "fp32",
                    "device": "cpu",
                    **settings,
                }
            ),
        )

    return make


# The model


def test_it_has_the_weights_and_the_tokenizer_of_the_other(saved_model, tiny_config):
    torch.manual_seed(5)
    model, other = start_model(str(saved_model), tiny_config), DualEncoder.from_pretrained(saved_model)
    assert_same(model.state_dict(), other.state_dict())
    assert model.tokenizer.to_json() == other.tokenizer.to_json()
    assert model.config == tiny_config


def test_of_a_run_folder_it_takes_the_best_model(saved_model, tiny_config, tmp_path):
    shutil.copytree(saved_model, tmp_path / "run" / "model")
    other = DualEncoder.from_pretrained(saved_model)
    with torch.no_grad():
        other.temperature.log_scale.add_(1.0)
    other.save_pretrained(tmp_path / "run" / "last")
    assert_same(start_model(str(tmp_path / "run"), tiny_config).state_dict(), weights(saved_model))


FREE = {
    "where weights came from": ("image", {"weights": ("hub",)}),
    "batch norm": ("image", {"train_batch_norm": True}),
    "a tokenizer's training": ("text", {"tokenizer": TokenizerConfig(vocab_size=999, lowercase=False)}),
    "dropout": ("text", {"dropout": 0.4, "embedding_dropout": 0.3}),
    "dropout of a head": ("image_head", {"dropout": 0.4}),
    "temperature": ("temperature", {"init": 5.0, "minimum": 2.0, "maximum": 50.0}),
    "how pictures become squares": ("preprocess", {"resize": "squash", "crop_fraction": 0.9}),
}


@pytest.mark.parametrize(("part", "values"), FREE.values(), ids=FREE)
def test_what_changes_no_weight_may_differ_and_is_as_configured(saved_model, tiny_config, part, values):
    config = changed(tiny_config, part, **values)
    model = start_model(str(saved_model), config)
    assert model.config == config
    assert_same(model.state_dict(), weights(saved_model))


def test_dropout_is_the_new_one(saved_model, tiny_config):
    config = changed(changed(tiny_config, "text", dropout=0.4), "text_head", dropout=0.2)
    model = start_model(str(saved_model), config)
    assert {layer.dropout.p for layer in model.text_tower.layers} == {0.4}
    assert model.text_head[0].p == 0.2


OTHERS = {
    "embed_dim": ("", {"embed_dim": 32}, ["model.embed_dim: 16 -> 32"]),
    "another tower": ("image", {"name": "test_vit"}, ["model.image.name: test_resnet -> test_vit"]),
    "a longer text": ("text", {"context_length": 25}, ["model.text.context_length: 24 -> 25"]),
    "two keys": ("text", {"width": 64, "layers": 3}, ["model.text.width: 32 -> 64", "model.text.layers: 2 -> 3"]),
    "pooling": ("text", {"pooling": "first"}, ["model.text.pooling: mean -> first"]),
    "a head": ("", {"image_head": HeadConfig(kind="mlp")}, ["model.image_head.kind: linear -> mlp"]),
    "temperature": (
        "",
        {"temperature": TemperatureConfig(kind="dynamic")},
        ["model.temperature.kind: learned -> dynamic"],
    ),
    "a bias": ("", {"logit_bias": -10.0}, ["model.logit_bias: None -> -10.0"]),
    "pixels": ("", {"preprocess": PreprocessConfig(image_size=64)}, ["model.preprocess.image_size: 32 -> 64"]),
    "kind": (
        "",
        {"text": TextTowerConfig(kind="huggingface", context_length=24)},
        ["model.text.kind: transformer -> huggingface", "model.text.width: 32 -> 256"],
    ),
}


@pytest.mark.parametrize(("part", "values", "named"), OTHERS.values(), ids=OTHERS)
def test_each_difference_is_named(saved_model, tiny_config, part, values, named):
    with pytest.raises(TrainingError, match="another model") as caught:
        start_model(str(saved_model), changed(tiny_config, part, **values))
    assert str(saved_model) in caught.value.message
    listed = [line.strip() for line in caught.value.message.splitlines()[1:]]
    assert set(named) <= set(listed)
    assert len(listed) == len(named) or "kind" in named[0]
    assert "left of the arrows" in caught.value.hint


def test_a_bias_may_start_elsewhere_and_is_the_other_models(tiny_config, captions, tmp_path):
    DualEncoder.build(changed(tiny_config, logit_bias=-7.0), captions).save_pretrained(tmp_path / "model")
    model = start_model(str(tmp_path / "model"), changed(tiny_config, logit_bias=-10.0))
    assert float(model.logit_bias.detach()) == -7.0
    with pytest.raises(TrainingError, match=r"model.logit_bias: -7.0 -> None"):
        start_model(str(tmp_path / "model"), tiny_config)


def test_a_hugging_face_tower_needs_its_sources_no_more(bert_model, tmp_path):
    bert_model.save_pretrained(tmp_path / "model")
    config = changed(bert_model.config, "text", sources=())
    assert bert_model.config.text.sources
    assert_same(start_model(str(tmp_path / "model"), config).state_dict(), bert_model.state_dict())


# Runs


def test_a_run_begins_with_it_and_trains_what_its_stage_says(saved_model, tiny, capsys):
    config = tiny(saved_model)
    train(config)
    before, after = weights(saved_model), weights(config.output / "last")
    assert_same(towers(after), towers(before))
    assert not torch.equal(after["image_head.1.weight"], before["image_head.1.weight"])
    tokenizers = [(folder / "tokenizer.json").read_text() for folder in (saved_model, config.output / "model")]
    assert tokenizers[0] == tokenizers[1]
    assert f"starts from {saved_model}" in " ".join(capsys.readouterr().out.split())
    assert f"started from {saved_model}" in (config.output / "model" / "README.md").read_text()


def towers(weights):
    return {name: tensor for name, tensor in weights.items() if name.startswith(("image_tower.", "text_tower."))}


def test_a_run_goes_on_from_another_run(saved_model, tiny):
    first = tiny(saved_model, "first")
    train(first)
    second = tiny(first.output, "second", stages=(StageConfig(epochs=1, heads=False, text_blocks=0, image_blocks=1),))
    train(second)
    before, after = weights(first.output / "model"), weights(second.output / "last")
    different = {name for name in before if not torch.equal(before[name], after[name])}
    assert different and all(name.startswith("image_tower.model.layer4.") for name in different)


def test_it_is_resumed_without_the_model_that_it_started_from(saved_model, model_copy, tiny, monkeypatch):
    train(tiny(saved_model, "whole"))
    config = tiny(model_copy)
    between = trainer.Trainer._between_steps

    def stop_at_step_three(self, last, place, log, stop):
        if self.global_step == 3:
            stop.set()
        return between(self, last, place, log, stop)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_between_steps", stop_at_step_three)
        with pytest.raises(trainer.Interrupted):
            train(config)
    shutil.rmtree(model_copy)
    train(config, resume=True)
    assert_same(weights(config.output / "last"), weights(config.output.with_name("whole") / "last"))


def absent(folder):
    shutil.rmtree(folder)


def emptied(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("damage", "change", "says"),
    [
        (absent, {}, "there is no model to start from"),
        (emptied, {}, "is no model folder"),
        (cut, {}, "cannot be opened as weights"),
        (None, {"embed_dim": 32}, "model.embed_dim: 16 -> 32"),
        (None, {"image": "test_vit"}, "model.image.name: test_resnet -> test_vit"),
        (None, {"image": "test_no_such"}, "model.image.name: test_resnet -> test_no_such"),
    ],
)
def test_a_bad_start_is_said_before_anything_is_written(model_copy, tiny, tiny_config, damage, change, says):
    if damage:
        damage(model_copy)
    if "image" in change:
        change = {"image": tiny_config.image.model_copy(update={"name": change["image"]})}
    config = tiny(model_copy, model=changed(tiny_config, **change))
    with pytest.raises(ClipletError, match=says) as caught:
        train(config)
    assert str(model_copy) in caught.value.message
    assert not config.output.exists()


# The size of training pictures


def test_a_run_trains_on_smaller_views_than_it_is_measured_on(tiny, saved_model):
    config = tiny(saved_model, image_size=16)
    train(config)
    assert DualEncoder.from_pretrained(config.output / "model").config.preprocess.image_size == 32


def test_a_tower_of_one_size_refuses_views_of_another(tiny, tiny_config):
    model = changed(tiny_config, "image", name="vit_tiny_patch16_224")
    config = tiny("", model=model, image_size=16, stages=(StageConfig(epochs=1),))
    with pytest.raises(TrainingError, match=r"train\.image_size 16: the image tower does not take such pictures"):
        train(config)
    assert not (config.output / "checkpoints").exists()
