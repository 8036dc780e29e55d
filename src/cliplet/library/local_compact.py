"""Taking the vectors of what is gone out of a library's folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cliplet.files import written_beside
from cliplet.library.database import IMAGE, TEXT
from cliplet.library.local_view import file_names
from cliplet.library.matrix import Matrix, are_whole

if TYPE_CHECKING:
    from cliplet.library.local_writer import LocalWriter

DEAD_SHARE, DEAD_LEAST = 0.5, 1000  # rows of what is gone, beyond which the matrices are written anew
ROWS_AT_ONCE = 4096


def compact_if_worth_it(writer: LocalWriter) -> None:
    """Writes the matrices anew, without the rows of what is gone, where these are most of them."""
    dead = {}
    for kind, table in ((IMAGE, "pictures"), (TEXT, "captions")):
        found = writer.database.rows(
            f"SELECT count(*) FROM vectors AS v WHERE generation = ? AND kind = ? AND NOT EXISTS "
            f"(SELECT 1 FROM {table} AS t WHERE t.content = v.content)",
            [writer.generation, kind],
        )
        dead[kind] = int(found[0][0])
    if not any(count > max(DEAD_LEAST, DEAD_SHARE * writer.rows[kind]) for kind, count in dead.items()):
        return
    compact(writer)


def compact(writer: LocalWriter) -> None:
    """Writes the matrices anew with the rows that are some picture's or caption's."""
    old, image, text = writer.generation, writer.image, writer.text
    rows = dict(writer.rows)
    row = writer.database.rows("SELECT * FROM generations WHERE id = ?", [old])[0]
    writer.database.run(
        "INSERT INTO generations (identity, dims, calibration) VALUES (?, ?, ?)",
        [row["identity"], row["dims"], row["calibration"]],
    )
    writer.open(writer.database.rows("SELECT * FROM generations ORDER BY id DESC LIMIT 1")[0])
    for kind, table, before, after in (
        (IMAGE, "pictures", image, writer.image),
        (TEXT, "captions", text, writer.text),
    ):
        alive = writer.database.rows(
            "SELECT v.row, v.content FROM vectors AS v WHERE generation = ? AND kind = ? AND EXISTS "
            f"(SELECT 1 FROM {table} AS t WHERE t.content = v.content) ORDER BY v.row",
            [old, kind],
        )
        damaged = _copy(writer, kind, before, after, rows[kind], alive)
        if damaged:
            writer.say(f"{damaged:,} vectors of {table} are damaged and were left out; the next run embeds them again")
    before_file, after_file = (file_names(writer.folder, one)["background"] for one in (old, writer.generation))
    if before_file.exists():
        with written_beside(after_file) as beside:
            beside.write_bytes(before_file.read_bytes())
    with writer.database.transaction():
        writer.database.run("UPDATE generations SET active = (id = ?)", [writer.generation])
    writer.clear_unfinished(keep=None)


def _copy(writer: LocalWriter, kind: int, before: Matrix, after: Matrix, rows: int, alive: Sequence[Any]) -> int:
    """Copies rows (row, content) bit for bit, with their checksums; returns how many are not what was written. Those
    are left out, and no record speaks of them any more."""
    vectors_ND, about_N = before.vectors(rows), before.contents(rows)
    left_out = 0
    for start in range(0, len(alive), ROWS_AT_ONCE):
        span = alive[start : start + ROWS_AT_ONCE]
        places = [one[0] for one in span]
        half_BD, about_B = vectors_ND[places], about_N[places]
        right_B = are_whole(half_BD, about_B)
        right_B &= [about["content"].tobytes() == bytes(one[1]) for about, one in zip(about_B, span, strict=True)]
        left_out += int((~right_B).sum())
        contents = [bytes(one[1]) for one, right in zip(span, right_B.tolist(), strict=True) if right]
        after.put(writer.rows[kind], half_BD[right_B], about_B[right_B])
        with writer.database.transaction():
            writer.point(kind, contents)
        writer.rows[kind] += len(contents)
    return left_out
