"""Every recipe is whole, prints itself, and says what it is."""

import pytest

from cliplet.cli import main
from cliplet.config import RunConfig, differences, from_yaml
from cliplet.errors import ConfigError
from cliplet.recipes import RECIPES, recipe


@pytest.mark.parametrize("name", RECIPES)
def test_printed_recipe_reads_back_equal(name, capsys):
    assert main(["recipes", name]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert from_yaml(printed.out) == recipe(name)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_fresh_whole_configuration(name):
    config = recipe(name)
    assert isinstance(config, RunConfig)
    assert config.name == name  # the run folder and the model card are named by it
    assert recipe(name) == config
    assert config.model.text.width % config.model.text.heads == 0
    assert (RECIPES[name].__doc__ or "").strip()


def test_recipes_differ():
    configs = [recipe(name) for name in RECIPES]
    for number, config in enumerate(configs):
        for other in configs[number + 1 :]:
            assert any(not line.startswith("name:") for line in differences(config, other))


def test_what_trains_from_scratch_learns_its_batch_norm_and_what_is_pretrained_keeps_it():
    for name in RECIPES:
        image = recipe(name).model.image
        assert image.train_batch_norm == (not image.weights)


def test_the_demo_never_flips_its_scenes():
    assert recipe("demo").augment.flip == 0.0


def test_the_list_names_every_recipe(capsys):
    assert main(["recipes"]) == 0
    printed = capsys.readouterr().out
    for name, function in RECIPES.items():
        assert f"{name:<10}{function.__doc__.splitlines()[0]}" in printed


def test_unknown_recipe_offers_the_nearest():
    with pytest.raises(ConfigError) as caught:
        recipe("finetun")
    assert "finetun" in caught.value.message and "Did you mean finetune" in caught.value.hint
