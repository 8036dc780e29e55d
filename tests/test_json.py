"""What --json prints: one object, of a form that docs/json.md describes to the field."""

import json
from pathlib import Path

import json_docs
import pytest

from cliplet.cli import VERBS, main
from cliplet.results import Result, TrainingSummary

DOCS = Path(__file__).parent.parent / "docs" / "json.md"


def test_the_page_describes_every_field_of_every_result():
    assert DOCS.read_text(encoding="utf-8") == json_docs.markdown(), "python tests/json_docs.py > docs/json.md"


def test_every_result_there_is_stands_on_the_page():
    described = {model for models in json_docs.COMMANDS.values() for model in models}
    known = {kind for kind in _kinds(Result) if kind.__module__.startswith("cliplet.")}
    assert known <= described
    assert all(field.description for model in described for field in model.model_fields.values())


def _kinds(base: type) -> set[type]:
    return {kind for direct in base.__subclasses__() for kind in {direct, *_kinds(direct)}}


@pytest.mark.parametrize("verb", sorted(set(VERBS) - {"serve"}))  # which answers over HTTP
def test_every_verb_takes_json(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    assert "--json" in capsys.readouterr().out


def test_numbers_that_are_not_finite_become_null():
    summary = TrainingSummary(
        recipe="r",
        run="a",
        model="b",
        report="c",
        data="d",
        split="val",
        seed=0,
        left_out=0,
        metrics={"x": float("nan")},
    )
    told = json.loads(summary.to_json())
    assert told["metrics"] == {"x": None}
    assert told["format"] == "cliplet-training" and told["format_version"] == 1
