"""The Hugging Face hub: models by their name there, fetched once and kept in the hub's own cache. No torch.

Its client is imported where it is used, for it takes longer to import than a small model takes to open.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cliplet.errors import ModelError

SECONDS_TO_ANSWER = 5.0
NAME_FORM = "A model on the hub is named OWNER/NAME, of letters, digits and - _ . between them."
LOG_IN = "hf auth login"

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_NAME = re.compile(rf"({_PART}/{_PART})(?:@([\w][\w./+-]{{0,199}}))?", re.ASCII)
# A path that ends like this was meant as a file, and nobody should be asked for it by mistake.
_FILES = (".safetensors", ".onnx", ".json", ".yaml", ".yml", ".npz", ".npy", ".pt", ".pth", ".bin", ".ckpt", ".git")
_PICTURES_AND_LISTS = (".jpg", ".jpeg", ".png", ".webp", ".tar", ".tsv", ".csv", ".txt")


class _OutOfReach(Exception):
    """The hub was not asked or did not answer; says why."""


def hub_answers() -> bool:
    """Whether the hub answers soon. Its client by itself would try again for minutes, and so would `datasets`."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS_TO_ANSWER)
    except Exception:  # of the HTTP library, which changes, or that offline mode is on
        return False
    return True


def is_hub_name(source: str | Path) -> bool:
    """Whether `source` can only mean a model on the hub: `owner/name` or `owner/name@revision`, and nothing here is
    called so."""
    return split_name(source) is not None and not Path(source).exists()


def split_name(name: str | Path) -> tuple[str, str | None] | None:
    """`owner/name` and the revision, None where none is named; None for what cannot be a model's name on the hub."""
    match = _NAME.fullmatch(str(name))
    if not match or match[1].lower().endswith(_FILES + _PICTURES_AND_LISTS) or "--" in match[1] or ".." in str(name):
        return None
    return match[1], match[2]


def fetched(name: str, weights: bool = False) -> Path:
    """The local folder of a model on the hub: of its latest version, or of the one in the hub's cache where the hub
    cannot be asked or HF_HUB_OFFLINE is set.

    Only files of a model folder are fetched. Of a model with exported graphs model.safetensors, which may be large,
    comes only with `weights`. Raises ModelError where the model is not to be had, or is none of cliplet's.
    """
    found = split_name(name)
    if found is None:
        raise ModelError(f"{name}: is no name of a model on the hub", NAME_FORM)
    repo, revision = found
    try:
        commit, there = _listing(repo, revision)
        with bars_for_people():
            return _downloaded(name, repo, revision, commit, _wanted(name, there, weights))
    except ModelError:
        raise
    except _OutOfReach as reason:
        return _from_cache(name, repo, revision, weights, str(reason))
    except Exception as error:  # of the hub, of the HTTP library, of the disk
        raise refused(name, error, f"{name}: is no folder here, and could not be fetched from the hub") from None


def in_cache(name: str, weights: bool = False) -> Path | None:
    """What `fetched` gives without a connection; None where that is nothing. Asks nobody."""
    found = split_name(name)
    try:
        return _from_cache(name, *found, weights, "nobody was asked") if found else None
    except ModelError:
        return None


def _listing(repo: str, revision: str | None) -> tuple[str, list[str]]:
    """The commit that a revision stands for now, and its files. Raises _OutOfReach, and the client's errors."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    if constants.HF_HUB_OFFLINE:
        raise _OutOfReach("HF_HUB_OFFLINE forbids to ask the hub")
    try:
        info = HfApi(library_name="cliplet").model_info(repo, revision=revision, timeout=SECONDS_TO_ANSWER)
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError):
        raise
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403) and error.response.headers.get("X-Error-Message"):
            raise
        # Out of order, too busy, or no hub at all but something between here and there.
        raise _OutOfReach(f"the hub answers with error {status}") from None
    except Exception:  # of the HTTP library, which changes
        raise _OutOfReach("the hub does not answer") from None
    return info.sha or "", [file.rfilename for file in info.siblings or ()]


def _wanted(name: str, there: list[str], weights: bool) -> list[str]:
    """Of a repository's files those to fetch. Raises ModelError where they cannot be a model of cliplet's."""
    from cliplet.model_folder import CONFIG, GRAPHS, PARITY, TOKENIZER, WEIGHTS, belongs

    exported = f"{GRAPHS}/{PARITY}" in there
    for needed in (CONFIG, TOKENIZER) if exported and not weights else (CONFIG, TOKENIZER, WEIGHTS):
        if needed not in there:
            if needed == WEIGHTS and exported:
                raise ModelError(
                    f"{name}: was pushed without its weights, only with exported graphs",
                    "It can be used without PyTorch, and cannot be trained, mixed or run by the engine torch.",
                )
            raise ModelError(
                f"{name}: is on the hub, but is no model of cliplet: it has no {needed}",
                "cliplet opens models that cliplet wrote; cliplet import makes them of some others.",
            )
    return [file for file in there if belongs(file) and (file != WEIGHTS or weights or not exported)]


def _downloaded(name: str, repo: str, revision: str | None, commit: str, wanted: list[str]) -> Path:
    """The folder in the cache with all `wanted` files of a commit; what is there already is not fetched again."""
    from huggingface_hub import hf_hub_download, snapshot_download

    from cliplet.model_folder import CONFIG

    folder = _cached(repo, revision)
    if folder is None or folder.name != commit or not all((folder / file).is_file() for file in wanted):
        # What it says is read before the rest, which may be large, is fetched.
        config = hf_hub_download(repo, CONFIG, revision=commit, library_name="cliplet")
        _refuse_other_tools(name, Path(config))
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=wanted, library_name="cliplet"))
        missing = [file for file in wanted if not (folder / file).is_file()]
        if missing:
            raise ModelError(f"{name}: {', '.join(missing)} could not be fetched from the hub", "Try again.")
    _refuse_other_tools(name, folder / CONFIG)
    return folder


def _from_cache(name: str, repo: str, revision: str | None, weights: bool, reason: str) -> Path:
    """The folder in the cache, which must be whole. `reason`: why the hub was not asked. Raises ModelError."""
    from cliplet.model_folder import CONFIG, TOKENIZER, WEIGHTS

    folder = _cached(repo, revision)
    if folder is None:
        raise ModelError(
            f"{name}: is no folder here and not in the hub's cache, and {reason}",
            "Load it once with a connection, after which none is needed; or name a local model folder.",
        )
    _refuse_other_tools(name, folder / CONFIG)
    graphs = _graphs(folder)
    needed = [TOKENIZER, *graphs, *([WEIGHTS] if weights or not graphs else [])]
    missing = [file for file in needed if not (folder / file).is_file()]
    if missing:
        raise ModelError(
            f"{name}: only a part of it is in the hub's cache, without {', '.join(missing)}, and {reason}",
            "Do this once with a connection, which fetches the rest; or name a local model folder.",
        )
    return folder


def _graphs(folder: Path) -> list[str]:
    """The files of its exported graphs that a folder in the cache speaks of, there or not."""
    from cliplet.model_folder import GRAPHS, PARITY

    try:
        said = json.loads((folder / GRAPHS / PARITY).read_text(encoding="utf-8"))
        return [f"{GRAPHS}/{graph['file']}" for graph in said["graphs"].values()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return [f"{GRAPHS}/{PARITY}"]  # there in a way, which opening it will say


def _cached(repo: str, revision: str | None) -> Path | None:
    """The folder in the hub's cache of what a revision was when it was last fetched; None where there is none."""
    from huggingface_hub import try_to_load_from_cache

    from cliplet.model_folder import CONFIG

    config = try_to_load_from_cache(repo, CONFIG, revision=revision)
    return Path(config).parent if isinstance(config, str) else None


def _refuse_other_tools(name: str, config: Path) -> None:
    """Raises ModelError for a config.json that cliplet did not write: one in the cache is hard to tell by its path."""
    try:
        data: Any = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        data = None
    if not isinstance(data, dict) or data.get("format") != "cliplet":
        raise ModelError(
            f"{name}: is on the hub, but is a model of another tool",
            "cliplet opens models that cliplet wrote; cliplet import makes them of some others.",
        )


@contextmanager
def bars_for_people() -> Iterator[None]:
    """Inside, the client shows its progress only where somebody sees it; a setting of the user's goes before that."""
    from huggingface_hub import constants
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hide = constants.HF_HUB_DISABLE_PROGRESS_BARS is None and not sys.stderr.isatty()
    hide = hide and not are_progress_bars_disabled()
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            enable_progress_bars()


def refused(name: str, error: Exception, otherwise: str) -> ModelError:
    """What the hub's client raised, in our words. `otherwise`: what to say of errors that nobody expects."""
    from huggingface_hub import errors

    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else 0
    if isinstance(error, errors.GatedRepoError):
        return ModelError(
            f"{name}: its owner decides who may have it, and you are not among them",
            f"Ask on its page, and log in: {LOG_IN}.",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelError(
            f"{name}: the model is on the hub, but has no such revision",
            "Name a branch, a tag or a commit of it, or leave the part from @ on out.",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelError(
            f"{name}: is no folder here, and on the hub there is no such model, or it is private",
            f"Check the spelling. For a private model, log in first: {LOG_IN}.",
        )
    if status == 401:
        return ModelError(f"{name}: the hub does not accept your token", f"Log in again: {LOG_IN}.")
    if status == 403:
        return ModelError(
            f"{name}: the hub does not allow it: {_first_line(error)}",
            "Take a token that may do this, or ask the owner.",
        )
    return ModelError(f"{otherwise}: {_first_line(error)}", "Try again; what has come already is kept.")


def _first_line(error: Exception) -> str:
    """What an error says, in one line: what the server said where it said something."""
    said = getattr(error, "server_message", None) or str(error).strip() or type(error).__name__
    return str(said).strip().splitlines()[0][:300]
