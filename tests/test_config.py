"""Configuration is data: frozen, strict, and the same after a trip through YAML."""

import pytest
from pydantic import ValidationError

from cliplet.config import (
    AugmentConfig,
    Config,
    DataConfig,
    ImageTowerConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    StageConfig,
    TemperatureConfig,
    TextTowerConfig,
    TrainConfig,
    differences,
    from_yaml,
    to_yaml,
    validated,
)
from cliplet.errors import ConfigError

UNUSUAL = RunConfig(
    name="odd: #name",
    data=DataConfig(path="C:\\data\\ünï 图.json", images=None, max_images=7, workers=3),
    augment=AugmentConfig(crop_scale=(0.25, 0.75), flip=0.0),
    model=ModelConfig(
        embed_dim=48,
        image=ImageTowerConfig(weights=("hub", "pkg:a_b/c d.safetensors")),
        text=TextTowerConfig(kind="huggingface", sources=("- x", "null", "yes"), pooling="last"),
    ),
    optim=OptimConfig(image_lr=1e-7, text_lr=3.3e-5, betas=(0.9, 0.999)),
    train=TrainConfig(
        output="runs/1e-4", stages=(StageConfig(epochs=1, image_blocks=0), StageConfig(epochs=2, text_blocks=3))
    ),
)


@pytest.mark.parametrize("config", [RunConfig(), UNUSUAL], ids=["defaults", "unusual"])
def test_yaml_round_trip_is_equal(config):
    assert from_yaml(to_yaml(config)) == config


@pytest.mark.parametrize("text", ["1e-4", "1e5", "-3.E+4", "1.5", "12", "true", "null", "~", "2020-01-01", "", " x "])
def test_a_text_that_looks_like_another_type_stays_a_text(text):
    config = RunConfig(name=text, data=DataConfig(path=text))
    assert from_yaml(to_yaml(config)) == config


@pytest.mark.parametrize(
    ("yaml", "value"),
    [("1e-4", 1e-4), ("2E-3", 2e-3), ("1.5e-3", 1.5e-3), ("3e0", 3.0), ("1.e-4", 1e-4), ("0.001", 1e-3), ("1", 1.0)],
)
def test_a_learning_rate_as_people_write_it(yaml, value):
    rate = from_yaml(f"optim: {{image_lr: {yaml}}}").optim.image_lr
    assert rate == value and isinstance(rate, float)


@pytest.mark.parametrize(
    ("yaml", "key", "right"),
    [
        ("trian: {}", "trian", "train"),
        ("train: {batchsize: 3}", "train.batchsize", "batch_size"),
        ("model: {text: {context_lenght: 3}}", "model.text.context_lenght", "context_length"),
        ("train: {stages: [{epochs: 1}, {image_block: 2}]}", "train.stages.1.image_block", "image_blocks"),
        ("optim: {lr_image: 1}", "optim.lr_image", "image_lr"),
    ],
)
def test_an_unknown_key_names_the_nearest_right_one(yaml, key, right):
    with pytest.raises(ConfigError) as caught:
        from_yaml(yaml, "my.yaml")
    assert caught.value.message == f"my.yaml: unknown key {key}"
    assert caught.value.hint.startswith("Did you mean") and right in caught.value.hint


def test_all_unknown_keys_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        from_yaml("trian: 1\nmodel: {embed: 3}\n")
    assert "trian" in caught.value.message and "model.embed" in caught.value.message


def test_an_unknown_key_like_no_other_lists_the_known_ones():
    with pytest.raises(ConfigError) as caught:
        from_yaml("loss: {qqqqqq: 1}")
    assert caught.value.hint == f"Known: {', '.join(LossConfig.model_fields)}."
    assert "soft_targets" in caught.value.hint


@pytest.mark.parametrize(
    ("yaml", "key"),
    [
        ("train: {batch_size: '128'}", "train.batch_size"),
        ("train: {batch_size: 12.5}", "train.batch_size"),
        ("train: {batch_size: true}", "train.batch_size"),
        ("train: {batch_size: 1}", "train.batch_size"),
        ("loss: {soft_targets: 'yes'}", "loss.soft_targets"),
        ("name: 3", "name"),
        ("name: 1e4", "name"),
        ("data: 3", "data"),
        ("train: {stages: {epochs: 3}}", "train.stages"),
        ("train: {stages: []}", "train"),
        ("train: {stages: [{image_blocks: -1}]}", "train.stages.0"),
        ("train: {stages: [{image_blocks: every}]}", "train.stages.0.image_blocks"),
        ("optim: {image_lr: .nan}", "optim.image_lr"),
        ("optim: {image_lr: .inf}", "optim.image_lr"),
        ("optim: {betas: [0.9]}", "optim.betas"),
        ("model: {text: {kind: bert}}", "model.text.kind"),
        ("augment: {crop_scale: [1.0, 0.5]}", "augment"),
        ("augment: {crop_scale: [0.0, 0.5]}", "augment"),
        ("augment: {crop_scale: [0.5, 1.5]}", "augment"),
        ("augment: {crop_ratio: [2.0, 1.0]}", "augment"),
        ("model: {temperature: {init: 200.0}}", "model.temperature"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_its_key(yaml, key):
    with pytest.raises(ConfigError) as caught:
        from_yaml(yaml, "my.yaml")
    assert caught.value.message.startswith(f"my.yaml: {key}")


@pytest.mark.parametrize(
    "yaml",
    [
        "[1, 2]",
        "just words",
        "a: b: c",
        "train: [",
        "\tx: 1",
        "name: 2001-99-99",
        "name: 2001-01-01",
        "? {a: 1}\n: 2",
        "name: !!python/object/apply:os.system ['true']",
        "data: &x {path: *x}",
    ],
)
def test_what_is_no_configuration_is_an_error_with_its_place(yaml):
    with pytest.raises(ConfigError, match=r"^my\.yaml: "):
        from_yaml(yaml, "my.yaml")


def test_keys_left_out_keep_the_values_of_the_base():
    merged = from_yaml("model: {text: {width: 64}}\ntrain: {stages: [{epochs: 9}]}", base=UNUSUAL)
    assert merged.model.text.width == 64
    assert merged.model.text.sources == UNUSUAL.model.text.sources
    assert merged.train.stages == (StageConfig(epochs=9),)  # lists are replaced whole
    assert merged.train.output == UNUSUAL.train.output
    assert merged.model_copy(update={"model": UNUSUAL.model, "train": UNUSUAL.train}) == UNUSUAL


@pytest.mark.parametrize("text", ["", "# nothing but a remark\n", "---\n"])
def test_an_empty_file_changes_nothing(text):
    assert from_yaml(text, base=UNUSUAL) == UNUSUAL


def test_differences_name_each_key_that_differs():
    assert differences(UNUSUAL, UNUSUAL) == []
    new = UNUSUAL.model_copy(
        update={
            "name": "n",
            "train": UNUSUAL.train.model_copy(update={"seed": 4, "stages": (*UNUSUAL.train.stages, StageConfig())}),
        }
    )
    assert differences(UNUSUAL, new) == [
        "name: odd: #name -> n",
        "train.seed: 0 -> 4",
        "train.stages.2.epochs: (absent) -> 10",
        "train.stages.2.image_blocks: (absent) -> all",
        "train.stages.2.text_blocks: (absent) -> all",
        "train.stages.2.heads: (absent) -> True",
        "train.stages.2.image_lr: (absent) -> None",
        "train.stages.2.text_lr: (absent) -> None",
        "train.stages.2.head_lr: (absent) -> None",
        "train.stages.2.augment: (absent) -> True",
        "train.stages.2.loss.info_nce: (absent) -> None",
        "train.stages.2.loss.siglip: (absent) -> None",
        "train.stages.2.loss.hard_negative: (absent) -> None",
        "train.stages.2.loss.feature: (absent) -> None",
        "train.stages.2.loss.logit: (absent) -> None",
        "train.stages.2.loss.affinity: (absent) -> None",
        "train.stages.2.loss.interactive: (absent) -> None",
    ]
    assert "train.stages.2.text_blocks: all -> (absent)" in differences(new, UNUSUAL)


def test_frozen():
    config = RunConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.name = "x"
    with pytest.raises(ValidationError, match="frozen"):
        config.train.stages[0].epochs = 3


def test_every_part_is_frozen_and_closed():
    for part in Config.__subclasses__():
        assert part.model_config["frozen"] and part.model_config["extra"] == "forbid", part


def test_unknown_keys_in_python_are_refused_too():
    with pytest.raises(ValidationError, match="width_"):
        TextTowerConfig(width_=3)


def test_bounds_may_meet():
    assert AugmentConfig(crop_scale=(1.0, 1.0)).crop_scale == (1.0, 1.0)
    assert TemperatureConfig(init=5.0, minimum=5.0, maximum=5.0).init == 5.0


def test_epochs_and_output():
    config = RunConfig(name="n", train=TrainConfig(stages=(StageConfig(epochs=2), StageConfig(epochs=5))))
    assert config.train.epochs == 7
    assert config.output.as_posix() == "runs/n"
    assert UNUSUAL.output.as_posix() == "runs/1e-4"


def test_validated_refuses_what_is_no_plain_data():
    with pytest.raises(ConfigError, match="not plain data"):
        validated(RunConfig, {"name": object()}, "here")
