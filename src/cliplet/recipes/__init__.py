"""The recipes. What differs between them is configuration only."""

from __future__ import annotations

from cliplet.config import RunConfig
from cliplet.errors import ConfigError, nearest
from cliplet.recipes import own, systems  # noqa: F401  for the recipes that they hold
from cliplet.recipes.recipe import RECIPES, Recipe

__all__ = ["RECIPES", "Recipe", "recipe"]


def recipe(name: str) -> RunConfig:
    """The configuration of the recipe of that name. Raises ConfigError that offers the nearest names."""
    if name not in RECIPES:
        raise ConfigError(f"there is no recipe {name!r}", nearest(name, RECIPES))
    return RECIPES[name]()
