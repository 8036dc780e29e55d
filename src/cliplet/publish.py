"""A model folder onto the Hugging Face hub, in one commit: nobody ever finds half of a model there. No torch."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from cliplet import __version__, hub, model_folder
from cliplet.card_metadata import completed, metadata, model_index
from cliplet.errors import ModelError
from cliplet.model_card import USE

_LICENCE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_BRANCH = re.compile(r"\w[\w./+-]{0,199}", re.ASCII)


class Pushed(NamedTuple):
    """What is on the hub now."""

    folder: Path  # the model folder, also where its run was named
    url: str  # of the model's page
    commit: str  # its URL
    files: list[str]  # pushed, by name
    left: list[str]  # in the folder and not part of the model, so not pushed
    removed: list[str]  # of an earlier model there, and not of this one


def push(
    folder: str | Path,
    name: str,
    *,
    private: bool = False,
    license_id: str = "",
    revision: str | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> Pushed:
    """Pushes the model of a model folder or run folder to the hub as `name`, and creates what is not there yet.

    `license_id` as the hub names licences, mit say; it goes into the card, as do the recalls where the card has none.
    The folder itself is not changed. `revision`: a branch. `say` hears what the hub finds fault with. Raises
    ModelError, before anything is sent, for a folder that is no good, and where the hub does not allow it.
    """
    from cliplet.runtime.engines import best_model_folder

    _refuse_bad_words(name, license_id, revision)
    folder = best_model_folder(folder)
    _check(folder)
    files, left = model_folder.contents(folder)
    card = _card(folder, name, license_id)
    _refuse_unready(name)
    files = sorted({*files, model_folder.CARD})
    try:
        with hub.bars_for_people(), warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always", UserWarning)
            url, commit, removed = _send(folder, name, files, card, private, revision)
    except ModelError:
        raise
    except Exception as error:  # of the hub, of the HTTP library, of the disk
        raise _refused(name, error) from None
    for warning in heard:
        if issubclass(warning.category, UserWarning):
            say(" ".join(str(warning.message).split()))
    return Pushed(folder, url, commit, files, left, removed)


def _refuse_bad_words(name: str, license_id: str, revision: str | None) -> None:
    parts = hub.split_name(name)
    if parts is None:
        raise ModelError(f"{name}: cannot be the name of a model on the hub", hub.NAME_FORM)
    if parts[1] is not None:
        raise ModelError(f"{name}: a branch is named by itself", f"Write {parts[0]} --revision {parts[1]}.")
    if license_id and not _LICENCE_ID.fullmatch(license_id):
        raise ModelError(
            f"{license_id!r} is not the name of a licence",
            "Name it as the hub does: mit, apache-2.0, cc-by-4.0, other.",
        )
    if revision is not None and (not _BRANCH.fullmatch(revision) or ".." in revision):
        raise ModelError(f"{revision!r} cannot be the name of a branch", "Take letters, digits and - _ . between them.")


def _check(folder: Path) -> None:
    """Raises ModelError for a folder that could not be opened by those who fetch it."""
    from cliplet.runtime.exported import is_exported, read_export

    description = model_folder.read_description(folder)
    if (folder / model_folder.WEIGHTS).is_file():
        model_folder.summarize(folder)  # which reads their headers
    if is_exported(folder):
        read_export(folder, description.model)


def _card(folder: Path, name: str, license_id: str) -> str:
    """The card as it is pushed: with all that hubs read, and telling how to load the model from there."""
    measured = _metrics(folder)
    known = metadata()
    index = model_index(
        name.partition("/")[2],
        str(measured.get("data") or ""),
        str(measured.get("split") or ""),
        measured["retrieval"] if isinstance(measured.get("retrieval"), dict) else {},
    )
    if index:
        known["model-index"] = index
    file = folder / model_folder.CARD
    try:
        text = file.read_bytes().decode("utf-8") if file.is_file() else f"# {name}\n"
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{file}: cannot be read: {error}", "Save it as text in UTF-8.") from None
    return completed(text, str(file), known, license_id).replace(USE, f'cliplet.load("{name}")')


def _metrics(folder: Path) -> dict[str, Any]:
    try:
        data = json.loads((folder / model_folder.METRICS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / model_folder.METRICS}: cannot be read: {error}") from None
    return data if isinstance(data, dict) else {}


def _refuse_unready(name: str) -> None:
    """Raises ModelError where nothing can be sent: offline, not logged in."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise ModelError(f"{name}: nothing can be pushed, for HF_HUB_OFFLINE forbids it", "Unset HF_HUB_OFFLINE.")
    if not get_token():
        raise ModelError(
            f"{name}: nothing can be pushed, for you are not logged in to the hub",
            f"Log in with a token that may write: {hub.LOG_IN}; or set HF_TOKEN.",
        )
    if not hub.hub_answers():
        raise ModelError(f"{name}: nothing can be pushed, for the hub does not answer", "Check the network.")


def _send(
    folder: Path, name: str, files: list[str], card: str, private: bool, revision: str | None
) -> tuple[str, str, list[str]]:
    """Page, commit, and which files of an earlier model were removed. Raises the client's errors, and ModelError."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(library_name="cliplet", library_version=__version__)
    page = api.create_repo(name, private=private or None, exist_ok=True)
    if private and not api.model_info(name).private:
        raise ModelError(
            f"{name}: is on the hub already, and everybody can see it",
            "Make it private in its settings there, or leave --private out.",
        )
    if revision:
        api.create_branch(name, branch=revision, exist_ok=True)
    # Graphs of other weights would be run in their place by whoever loads the model.
    removed = [
        file
        for file in sorted(api.list_repo_files(name, revision=revision))
        if model_folder.belongs(file) and not model_folder.is_licence(file) and file not in files
    ]
    changes: list[Any] = [CommitOperationDelete(path_in_repo=file) for file in removed]
    for file in files:
        content = card.encode("utf-8") if file == model_folder.CARD else str(folder / file)
        changes.append(CommitOperationAdd(path_in_repo=file, path_or_fileobj=content))
    commit = api.create_commit(
        name, changes, commit_message=f"A model, pushed by cliplet {__version__}", revision=revision
    )
    return str(page), commit.commit_url, removed


def _refused(name: str, error: Exception) -> ModelError:
    from huggingface_hub import errors

    owner = name.partition("/")[0]
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else 0
    if status == 403 or isinstance(error, errors.RepositoryNotFoundError):
        return ModelError(
            f"{name}: you may not push to {owner}",
            f"Push under your own name, or log in with a token that may write there: {hub.LOG_IN}.",
        )
    if isinstance(error, ValueError) and not status:  # what the hub finds wrong in the card, for one
        said = " ".join(str(error).split())
        return ModelError(f"{name}: was not pushed: {said}", "Nothing was changed there.")
    return hub.refused(name, error, f"{name}: was not pushed, and no model was changed there")
