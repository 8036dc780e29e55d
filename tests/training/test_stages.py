"""Exactly what a stage says trains, and nothing else changes."""

import pytest
import torch

from cliplet.config import OptimConfig, StageConfig
from cliplet.errors import TrainingError
from cliplet.training.optim import build_optimizer, set_learning_rate
from cliplet.training.stages import set_trainable, stage_at

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


def test_the_line_for_people(tiny_model):
    line = set_trainable(tiny_model, StageConfig(image_blocks=2, text_blocks=0))
    assert line.startswith("heads, image tower: last 2 of 5 blocks, text tower: frozen; ")
    line = set_trainable(tiny_model, StageConfig())
    assert "image tower: all, text tower: all; 0.4 of 0.4 M" in line


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
    set_learning_rate(optimizer, 1.0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    ids, mask = (torch.from_numpy(array) for array in model.tokenizer(captions))
    image_BD, text_CD, scale = model(torch.randn(5, 3, 32, 32), ids, mask)
    torch.nn.functional.cross_entropy(scale * image_BD @ text_CD.T, torch.arange(5)).backward()
    optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(before[name], tensor)}
    assert changed == trainable(model)  # statistics of batch norm are in the state too: they stay


def test_freezing_drops_old_gradients_so_that_momentum_moves_nothing(tiny_model):
    model = tiny_model
    optimizer = build_optimizer(model, OptimConfig())
    set_learning_rate(optimizer, 1.0)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    set_trainable(model, StageConfig(image_blocks=0, text_blocks=0))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer.step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)}
    assert changed == expected(model, (), ())


def test_stage_of_an_epoch():
    stages = (StageConfig(epochs=2), StageConfig(epochs=1), StageConfig(epochs=3))
    places = [(place.number, place.first_epoch) for place in (stage_at(stages, epoch) for epoch in range(6))]
    assert places == [(0, 0), (0, 0), (1, 2), (2, 3), (2, 3), (2, 3)]
    assert stage_at(stages, 3).stage is stages[2]
    with pytest.raises(ValueError, match="beyond the 6 epochs"):
        stage_at(stages, 6)
