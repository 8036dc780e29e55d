"""Exactly what a stage says trains, and nothing else changes."""

import pytest
import torch

from cliplet.config import (
    ImageTowerConfig,
    LossConfig,
    OptimConfig,
    RunConfig,
    SharedHeadConfig,
    StageConfig,
    StageLossConfig,
    TemperatureConfig,
    TrainConfig,
)
from cliplet.errors import TrainingError
from cliplet.models import DualEncoder
from cliplet.training import stages
from cliplet.training.optim import build_optimizer, set_learning_rate
from cliplet.training.stages import (
    head_parameters,
    peak_rates,
    refuse_bad_stages,
    refuse_idle,
    set_trainable,
    stage_at,
)

PEAKS = {"image": 1e-4, "text": 1e-4, "head": 1e-3}
ALWAYS = ("image_head.", "text_head.", "temperature.")


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def expected(model, image, text):
    """Names by their beginnings."""
    return {name for name, _ in model.named_parameters() if name.startswith((*ALWAYS, *image, *text))}


IMAGE = {
    0: (),
    1: ("image_tower.model.layer4.",),
    2: ("image_tower.model.layer4.", "image_tower.model.layer3."),
    5: ("image_tower.",),
    "all": ("image_tower.",),
}
TEXT = {
    0: (),
    1: ("text_tower.layers.1.", "text_tower.final_norm."),
    2: ("text_tower.layers.", "text_tower.final_norm."),
    3: ("text_tower.",),
    "all": ("text_tower.",),
}


@pytest.mark.parametrize("image", IMAGE)
@pytest.mark.parametrize("text", TEXT)
def test_exactly_these_train(tiny_model, image, text):
    set_trainable(tiny_model, StageConfig(image_blocks="all", text_blocks=0))  # an earlier stage leaves no trace
    set_trainable(tiny_model, StageConfig(image_blocks=image, text_blocks=text))
    assert trainable(tiny_model) == expected(tiny_model, IMAGE[image], TEXT[text])


def test_bert_thaws_from_the_top(bert_model):
    set_trainable(bert_model, StageConfig(image_blocks=0, text_blocks=1))
    assert trainable(bert_model) == expected(bert_model, (), ("text_tower.model.encoder.layer.1.",))


def test_a_last_block_has_the_norms_after_it(tiny_config, captions):
    config = tiny_config.model_copy(update={"image": ImageTowerConfig(name="test_vit")})
    model = DualEncoder.build(config, captions)
    last = max(int(name.split(".")[3]) for name in dict(model.named_parameters()) if "tower.model.blocks." in name)
    for count, first in ((1, last), (2, last - 1)):
        set_trainable(model, StageConfig(image_blocks=count, text_blocks=0))
        blocks = tuple(f"image_tower.model.blocks.{number}." for number in range(first, last + 1))
        norms = ("image_tower.model.norm.", "image_tower.model.fc_norm.")
        assert trainable(model) == expected(model, (*blocks, *norms), ())
    assert any(name.startswith(norms) for name in trainable(model))


def test_heads_are_all_that_is_in_neither_tower(tiny_config, captions):
    config = tiny_config.model_copy(
        update={
            "shared_head": SharedHeadConfig(kind="residual_mlp"),
            "temperature": TemperatureConfig(kind="dynamic"),
            "logit_bias": -10.0,
        }
    )
    model = DualEncoder.build(config, captions)
    line = set_trainable(model, StageConfig(image_blocks=0, text_blocks=0))
    heads = (*ALWAYS, "shared_head.", "logit_bias")
    assert trainable(model) == {name for name, _ in model.named_parameters() if name.startswith(heads)}
    assert len(head_parameters(model)) == len(trainable(model))
    listed = set(line.split(" tensors: ")[1].split(", "))
    assert listed == {"logit_bias", "image_head.*", "text_head.*", "shared_head.*", "temperature.*"}


def test_a_long_list_of_names_is_cut(tiny_model, monkeypatch):
    monkeypatch.setattr(stages, "NAMED", 2)
    line = set_trainable(tiny_model, StageConfig(image_blocks=2, text_blocks=0))
    assert line.endswith(" tensors: image_tower.model.layer3.*, image_tower.model.layer4.* and 3 more")


def test_the_line_for_people(tiny_model):
    line = set_trainable(tiny_model, StageConfig(image_blocks=2, text_blocks=0))
    assert line.startswith("image tower: last 2 of 5 blocks, text tower: frozen, heads and temperature: all; ")
    trained = [p for p in tiny_model.parameters() if p.requires_grad]
    count = sum(p.numel() for p in trained)
    assert f"; {count:,} of {tiny_model.count_parameters():,} parameters, in {len(trained)} tensors: " in line
    names = set(line.split(" tensors: ")[1].split(", "))
    assert names == {
        "image_tower.model.layer3.*",
        "image_tower.model.layer4.*",
        "image_head.*",
        "text_head.*",
        "temperature.*",
    }
    line = set_trainable(tiny_model, StageConfig())
    assert "image tower: all, text tower: all, heads and temperature: all" in line and "image_tower.*, " in line


def test_heads_can_be_frozen_too(tiny_model):
    set_trainable(tiny_model, StageConfig(image_blocks=1, text_blocks=0, heads=False))
    assert trainable(tiny_model) == {n for n, _ in tiny_model.named_parameters() if n.startswith(IMAGE[1])}


def test_a_stage_that_trains_nothing_is_refused(tiny_model):
    with pytest.raises(TrainingError, match="trains nothing"):
        set_trainable(tiny_model, StageConfig(image_blocks=0, text_blocks=0, heads=False))
    stage = StageConfig(image_blocks=0, text_blocks="all", heads=True, text_lr=0.0, head_lr=0.0)
    set_trainable(tiny_model, stage)
    with pytest.raises(TrainingError, match=r"learning rates .* are 0"):
        refuse_idle(tiny_model, stage, OptimConfig(image_lr=1.0))
    refuse_idle(tiny_model, stage.model_copy(update={"head_lr": 1e-3}), OptimConfig())


IDLE = {"image_blocks": 0, "text_blocks": 0, "heads": False}


@pytest.mark.parametrize(
    ("second", "says"),
    [
        (StageConfig(image_blocks=99), "image_blocks is 99"),
        (StageConfig(**IDLE), "both towers are frozen"),
        (StageConfig(image_lr=0.0, text_lr=0.0, head_lr=0.0), "are 0"),
        (StageConfig(loss=StageLossConfig(info_nce=0.0)), "no term"),
    ],
)
def test_a_bad_stage_is_found_wherever_it_stands(tiny_model, second, says):
    good = StageConfig(image_blocks=0)
    refuse_bad_stages(tiny_model, RunConfig(train=TrainConfig(stages=(good, good))))
    for both in ((second, good), (good, second)):
        with pytest.raises(TrainingError, match=says):
            refuse_bad_stages(tiny_model, RunConfig(train=TrainConfig(stages=both)))


def test_stages_may_give_the_loss_its_only_weights(tiny_model):
    own = StageConfig(loss=StageLossConfig(hard_negative=1.0))
    loss = LossConfig(info_nce=0.0)
    refuse_bad_stages(tiny_model, RunConfig(loss=loss, train=TrainConfig(stages=(own, own))))
    with pytest.raises(TrainingError, match="no term"):
        refuse_bad_stages(tiny_model, RunConfig(loss=loss, train=TrainConfig(stages=(own, StageConfig()))))


def test_a_stage_has_its_own_rates_or_the_usual_ones():
    optim = OptimConfig(image_lr=1.0, text_lr=2.0, head_lr=3.0)
    assert peak_rates(StageConfig(), optim) == {"image": 1.0, "text": 2.0, "head": 3.0}
    assert peak_rates(StageConfig(text_lr=0.0, head_lr=5.0), optim) == {"image": 1.0, "text": 0.0, "head": 5.0}


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        (StageConfig(image_blocks=6), "image_blocks is 6, but the image tower has 5 blocks"),
        (StageConfig(text_blocks=4), "text_blocks is 4, but the text tower has 3 blocks"),
    ],
)
def test_more_blocks_than_there_are_is_refused(tiny_model, stage, said):
    with pytest.raises(TrainingError, match=said):
        set_trainable(tiny_model, stage)


def test_a_step_changes_what_trains_and_nothing_else(tiny_model, captions):
    model = tiny_model
    with torch.no_grad():  # timm begins its residual branches at zero, through which no gradient passes
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    set_trainable(model, StageConfig(image_blocks=1, text_blocks=1))
    optimizer = build_optimizer(model, OptimConfig(weight_decay=0.5))
    set_learning_rate(optimizer, PEAKS, 1.0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    ids, mask = (torch.from_numpy(array) for array in model.tokenizer(captions))
    image_BD, text_CD, scale, _ = model(torch.randn(5, 3, 32, 32), ids, mask)
    torch.nn.functional.cross_entropy(scale * image_BD @ text_CD.T, torch.arange(5)).backward()
    optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(before[name], tensor)}
    assert changed == trainable(model)  # statistics of batch norm are in the state too: they stay


@pytest.mark.parametrize(
    ("stage", "text"),
    [
        (StageConfig(image_blocks=0, text_blocks=0), ()),
        (StageConfig(image_blocks=0, text_blocks="all", heads=False), ("text_tower.",)),
    ],
)
def test_freezing_drops_old_gradients_so_that_momentum_moves_nothing(tiny_model, stage, text):
    model = tiny_model
    optimizer = build_optimizer(model, OptimConfig())
    set_learning_rate(optimizer, PEAKS, 1.0)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    set_trainable(model, stage)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer.step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)}
    assert changed == trainable(model) == {name for name in before if name.startswith(text or ALWAYS)}


def test_stage_of_an_epoch():
    three = (StageConfig(epochs=2), StageConfig(epochs=1), StageConfig(epochs=3))
    places = [(place.number, place.first_epoch) for place in (stage_at(three, epoch) for epoch in range(6))]
    assert places == [(0, 0), (0, 0), (1, 2), (2, 3), (2, 3), (2, 3)]
    assert stage_at(three, 3).stage is three[2]
    with pytest.raises(ValueError, match="beyond the 6 epochs"):
        stage_at(three, 6)


@pytest.mark.parametrize("name", ["tiny_model", "bert_model"])
def test_a_tower_that_is_frozen_whole_computes_as_in_evaluation(name, request):
    model = request.getfixturevalue(name)
    for stage, image, text in (
        (StageConfig(image_blocks=0, text_blocks=0), False, False),
        (StageConfig(image_blocks=1, text_blocks=0), True, False),
        (StageConfig(image_blocks=0, text_blocks=1), False, True),
    ):
        set_trainable(model, stage)
        model.train()
        assert model.image_tower.model.training == image
        dropouts = [module for module in model.text_tower.modules() if isinstance(module, torch.nn.Dropout)]
        assert dropouts and all(module.training == text for module in dropouts)
        assert model.image_head.training and model.text_head.training
    assert not any(module.training for module in model.eval().modules())
