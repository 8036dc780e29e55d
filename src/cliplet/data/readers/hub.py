"""The library `datasets`: what it downloads and converts, as Arrow files, and its errors in our words."""

from __future__ import annotations

import errno
import importlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cliplet.data.readers.arrow_rows import find_columns
from cliplet.errors import INSTALL_TRAIN, DataError
from cliplet.hub import hub_answers

STORED_AT_ONCE = 100  # rows
NOT_HERE = "is neither a file nor a folder here"
NAME_FORM = "A data set on the hub is named hf:owner/name, or hf:owner/name:configuration."


def library(name: str, needed_for: str) -> Any:
    """A library that the base installation lacks. Raises DataError where it is not there."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise DataError(f"{needed_for} the package {name} is needed", INSTALL_TRAIN) from None


@contextmanager
def spoken_by_us(datasets: Any, name: str, bars: bool) -> Iterator[None]:
    """Inside, the library logs nothing and shows its bars only if `bars`; what it raises becomes a DataError."""
    verbosity, had_bars = datasets.logging.get_verbosity(), not datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    if had_bars and not bars:
        datasets.disable_progress_bars()
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # it raises nearly anything, and what its own libraries raise
        raise _in_our_words(datasets, name, error) from None
    finally:
        datasets.logging.set_verbosity(verbosity)
        if had_bars and not bars:
            datasets.enable_progress_bars()


def prepared(builder: Any) -> dict[str, list[str]]:
    """The Arrow files of each split, made where they are not in the cache yet. They hold pictures' bytes or paths as
    they came; nothing is decoded."""
    builder.download_and_prepare(verification_mode="no_checks")  # the sizes that repositories state are often old
    return {str(split): [f["filename"] for f in found.cache_files] for split, found in builder.as_dataset().items()}


def from_hub(datasets: Any, name: str, repo: str, config: str | None, samples: int | None) -> dict[str, list[str]]:
    """The Arrow files of each split of a data set on the hub, or of its first rows.

    First rows are streamed and kept, so that the second time nothing is asked of the hub. Raises DataError.
    """
    if repo in datasets.packaged_modules._PACKAGED_DATASETS_MODULES:  # these would read what lies about here
        raise DataError(f"{name}: is a file format to datasets, not a data set on the Hugging Face hub", NAME_FORM)
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    folder = cache / "cliplet" / repo.replace("/", "___") / f"{quote(config or 'default', safe='')}-first-{samples}"
    if samples is None or not folder.is_dir():
        if not hub_answers() and (samples is not None or not _in_cache(cache, repo)):
            raise _out_of_reach(name)
        builder = datasets.load_dataset_builder(f"hf://datasets/{repo}", config)  # so it is never a folder here
        if builder.info.features:
            find_columns(builder.info.features.arrow_schema, name)  # before all is downloaded
        if samples is None:
            return prepared(builder)
        store_samples(name, builder.as_streaming_dataset(), samples, folder)
    return {file.stem.partition("-")[2]: [str(file)] for file in sorted(folder.glob("*.arrow"))}


def store_samples(name: str, splits: Mapping[str, Any], samples: int, folder: Path) -> None:
    """Writes the first rows of each split's IterableDataset into an Arrow file of its own, with the pictures' bytes.

    `folder` is there when all is written. Raises DataError for columns that are not understood.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    try:
        for number, (split, stream) in enumerate(splits.items()):  # numbered: the order of splits is kept
            tables = stream.take(samples).with_format("arrow").iter(batch_size=STORED_AT_ONCE)
            _store(f"{name} {split}", tables, partial / f"{number:03}-{split}.arrow")
        try:
            partial.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another run was faster
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _store(where: str, tables: Iterable[Any], file: Path) -> None:
    import pyarrow as pa

    writer = None
    try:
        for table in tables:
            columns = find_columns(table.schema, where)
            table = _with_bytes(table.select(columns.all), columns.image)
            if writer is None:
                schema = table.schema
                writer = pa.ipc.new_stream(str(file), schema)
            writer.write_table(table.cast(schema))
    finally:
        if writer is not None:
            writer.close()


def _with_bytes(table: Any, column: str) -> Any:
    """The table with the bytes of pictures that it only has paths to, on the hub mostly."""
    import datasets
    import pyarrow as pa

    field = table.schema.field(column)
    if field.type != datasets.Image.pa_type:
        return table
    cells = table.column(column).to_pylist()
    for cell in cells:
        path = cell["path"] if cell and cell["bytes"] is None else None
        if not path or (path.startswith("http") and not path.startswith(datasets.config.HF_ENDPOINT)):
            continue  # other machines than the hub are asked for nothing
        try:
            cell.update(datasets.Image().embed_storage(pa.array([cell], field.type))[0].as_py())
        except FileNotFoundError:  # a bad row; a lost connection is not, and goes on up
            cell["path"] = None
    return table.set_column(table.schema.get_field_index(column), field, pa.array(cells, field.type))


def _in_cache(cache: Path, repo: str) -> bool:
    """Whether `datasets` seems to have downloaded it before; then it can do without the hub."""
    wanted = repo.replace("/", "").replace("_", "").lower()
    return cache.is_dir() and any(folder.name.replace("_", "").lower() == wanted for folder in cache.iterdir())


def _out_of_reach(name: str) -> DataError:
    from huggingface_hub import constants

    why = "it is forbidden by HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else "no connection"
    return DataError(
        f"{name}: {NOT_HERE}, and the Hugging Face hub could not be reached ({why})",
        "If a file or folder is meant, check its path. If a data set on the hub, check the network.",
    )


def _in_our_words(datasets: Any, name: str, error: BaseException) -> DataError:
    """What the library raised, by the first of its causes that is understood."""
    last: BaseException = error
    cause: BaseException | None = error
    while cause is not None:
        last = cause
        text = one_line(cause)
        if getattr(cause, "errno", None) == errno.ENOSPC or "No space left" in text or "enough disk space" in text:
            cache = datasets.config.HF_DATASETS_CACHE
            return DataError(
                f"{name}: the disk is full; the cache of datasets is in {cache}",
                "Free some space, or name another folder in the environment variable HF_DATASETS_CACHE.",
            )
        if isinstance(cause, datasets.exceptions.DatasetNotFoundError):
            return DataError(
                f"{name}: {NOT_HERE}, and not to be had from the Hugging Face hub: {text}",
                "Check the spelling. For a private or gated data set, log in first: hf auth login.",
            )
        if isinstance(cause, (ConnectionError, TimeoutError)) or type(cause).__module__.startswith("httpx"):
            return _out_of_reach(name)
        if "scripts are no longer supported" in text:
            return DataError(
                f"{name}: is a program that makes a data set, and no code from the hub is run",
                "Look for a copy of it in Parquet on the hub.",
            )
        if "Config name is missing" in text or "BuilderConfig" in text:
            return DataError(f"{name}: {text}", NAME_FORM)
        cause = cause.__cause__ or cause.__context__
    return DataError(f"{name}: cannot be read: {one_line(last)}", "If files were copied, they may be cut short.")


def one_line(error: BaseException) -> str:
    """What an error says, without line breaks, not too much of it."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 500 else text[:497] + "..."
