"""Which model a library's vectors are of, and opening it again."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from cliplet import model_folder
from cliplet.errors import DataError, ModelError
from cliplet.library.records import Identity
from cliplet.runtime.encoder import Encoder, load
from cliplet.runtime.engines import best_model_folder
from cliplet.runtime.identity import features_hashes, graphs_of, model_hashes

WHERE_HINT = "Name where it is now: cliplet index --library LIBRARY -m MODEL."


def hashes_of(encoder: Encoder) -> dict[str, str]:
    """Of a model that is open, by which it is known; see `features_hashes`."""
    return (features_hashes(encoder.source) if encoder.source else {}) or model_hashes(encoder)


def identity_of(encoder: Encoder) -> Identity:
    """Of a model that is open. Its picture tower is opened for it, where that has not been."""
    describe = getattr(encoder.engine, "describe", None)
    engine, _, precision = (describe("image") if describe else "").partition(" in ")
    hashes = features_hashes(encoder.source) if encoder.source else {}
    return Identity(
        source=str(Path(encoder.source).absolute()) if Path(encoder.source).exists() else encoder.source,
        hashes=hashes or model_hashes(encoder),
        dims=encoder.embed_dim,
        engine=engine,
        precision=precision.partition(" ")[0],
        exact=not hashes or graphs_of(Path(encoder.source)).get("precision") != "int8",
    )


def open_again(place: str, identity: Identity | None, engine: str = "auto", model: str = "") -> Encoder:
    """The model of a library's vectors, from where it was or from `model`, by the engine that computed them.

    Where that is not installed any other is taken, with a warning if its vectors differ (8 bits). Raises DataError
    where the model is another by now, ModelError where it is not there.
    """
    if identity is None:
        raise DataError(f"{place}: has no model yet", "Name one: cliplet index FOLDER --library LIBRARY -m MODEL.")
    source = model or identity.source
    wanted, precision = (
        (identity.engine, identity.precision) if engine == "auto" and not identity.exact else (engine, "auto")
    )
    try:
        try:
            encoder = load(source, engine=wanted, precision=precision, dims=_dims(source, identity))
        except ModelError:
            if wanted == engine:
                raise
            encoder = load(source, engine=engine, dims=_dims(source, identity))
            warnings.warn(
                f"{place}: its 8-bit vectors were computed by {identity.engine} in {identity.precision}, which does "
                "not run here; scores differ a little",
                stacklevel=2,
            )
    except ModelError as error:
        raise ModelError(
            f"{place}: the model of its vectors cannot be opened: {error.message}",
            WHERE_HINT if _is_away(source) or not error.hint else error.hint,
        ) from None
    refuse_other(place, identity, encoder)
    return encoder


def refuse_other(place: str, held: Identity, encoder: Encoder) -> dict[str, str]:
    """The encoder's hashes. Raises DataError where it is not the model of the vectors held."""
    hashes = hashes_of(encoder)
    if (hashes, encoder.embed_dim) != (held.hashes, held.dims):
        raise other_model(place, held, identity_of(encoder))
    return hashes


def _dims(source: str, identity: Identity) -> int | None:
    """Features of fewer dimensions than the model's own are asked for."""
    own = graphs_of(Path(source)).get("embed_dim")
    return None if own in (None, identity.dims) else identity.dims


def other_model(place: Any, held: Identity, given: Identity) -> DataError:
    """For vectors that do not belong with those that are there."""
    if held.hashes == given.hashes and held.dims == given.dims:
        return DataError(
            f"{place}: its 8-bit vectors were computed by {held.engine} in {held.precision}; those of {given.engine} "
            f"in {given.precision} differ",
            f"Add --engine {held.engine}, or embed all anew with --upgrade.",
        )
    return DataError(
        f"{place}: holds vectors of another model, {held.source} ({held.dims} dimensions), not of {given.source} "
        f"({given.dims})",
        "Leave -m out to go on with that one, or embed all anew with --upgrade.",
    )


def _is_away(source: str) -> bool:
    """Whether a model is no longer in the folder where it was."""
    return Path(source).is_absolute() and not model_folder.is_model_folder(best_model_folder(source))


def given_up(identity: Identity, vectors: int) -> str:
    """What is said where an upgrade that has not come to its end makes room for something else."""
    return (
        f"the upgrade to {identity.source} was not finished, and is given up: the {vectors:,} vectors that it has made "
        "are removed"
    )
