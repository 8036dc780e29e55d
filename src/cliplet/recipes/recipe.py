"""What a recipe is: a function that returns a whole RunConfig, and what there is to know of it before training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cliplet.config import RunConfig


@dataclass(frozen=True)
class Recipe:
    """One experiment. Calling it gives its configuration."""

    name: str
    make: Callable[[str], RunConfig]  # takes the name
    parameters: float  # millions; with a vocabulary as large as it may become
    published: str  # figures of others for this model, or nothing

    def __call__(self) -> RunConfig:
        return self.make(self.name)

    @property
    def shows(self) -> str:
        """One sentence on what it is."""
        return " ".join((self.make.__doc__ or "").split("\n\n")[0].split())

    def as_dict(self) -> dict[str, Any]:
        """What `cliplet recipes --json` says."""
        model = self().model
        return {
            "name": self.name,
            "parameters_M": self.parameters,
            "image_size": model.preprocess.image_size,
            "context_length": model.text.context_length,
            "embed_dim": model.embed_dim,
            "shows": self.shows,
            "published": self.published,
        }


RECIPES: dict[str, Recipe] = {}


def recipe_named(
    name: str, *, parameters: float, published: str = ""
) -> Callable[[Callable[[str], RunConfig]], Recipe]:
    """Puts the function below it among the recipes."""

    def add(make: Callable[[str], RunConfig]) -> Recipe:
        RECIPES[name] = Recipe(name, make, parameters, published)
        return RECIPES[name]

    return add
