"""What results of verbs are made of. Apart from them, for a query must not wait for what describes the others."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

DIRECTIONS = {"image_to_text": "image→text", "text_to_image": "text→image"}  # as metrics are named, and for people

Metrics = dict[str, int | float]  # by name, as `retrieval_metrics` gives them


class Strict(BaseModel):
    """Part of a result. What stands under a field is its description, here and in docs/json.md."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True)


class Result(Strict):
    """One command's result. A field is never renamed or given another meaning under the same `format_version`; new
    ones may come. Numbers that are not finite become null."""

    format: str
    """What this object is."""
    format_version: int = 1
    """Of that form."""

    def to_json(self) -> str:
        """The object as JSON text, indented."""
        return self.model_dump_json(indent=2)
