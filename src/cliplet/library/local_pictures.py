"""Pictures and their captions as rows of a library's records."""

from __future__ import annotations

import os
from datetime import datetime, timezone

from cliplet.library.database import Database
from cliplet.library.lance_tables import sound
from cliplet.library.local_reading import content_of_text
from cliplet.library.records import joined
from cliplet.library.store import Entry

COLUMNS = ("format", "width", "height", "taken", "year", "month", "day", "hour", "latitude", "longitude", "camera")


def write_picture(database: Database, entry: Entry) -> None:
    """A picture: a new one, or in the place of another. Its number, captions and date stay those of that one."""
    folder, name = os.path.split(entry.path)
    own = tuple(map(sound, entry.columns.get("own_captions", ())))
    values = {column: entry.columns.get(column) for column in COLUMNS}
    values |= {column: sound(value) for column, value in values.items() if isinstance(value, str)}
    values |= {"path": entry.path, "name": name, "folder": folder, "bytes": entry.bytes}
    values |= {"changed": entry.changed, "content": entry.content, "own_captions": joined(own)}
    values["tags"] = joined(tuple(map(sound, entry.columns.get("tags", ()))))
    database.run("DELETE FROM problems WHERE path = ?", [entry.path])
    id = entry.id
    if id is None:
        values["added"] = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")
        marks = ", ".join("?" * len(values))
        statement = f"INSERT INTO pictures ({', '.join(values)}) VALUES ({marks})"
        id = int(database.run(statement, list(values.values())).lastrowid or 0)
        before: tuple[str, ...] | None = None
    else:
        row = database.rows("SELECT own_captions FROM pictures WHERE id = ?", [id])[0]
        before = tuple(row[0][1:-1].split("\n")) if row[0] else ()
        changes = ", ".join(f"{column} = ?" for column in values)
        database.run(f"UPDATE pictures SET {changes} WHERE id = ?", [*values.values(), id])
    if entry.captions is not None:
        write_captions_of(database, id, entry.captions)
    elif before is None or before != own:
        others = (one for one in (_captions(database, id) if before is not None else ()) if one not in (before or ()))
        write_captions_of(database, id, (*others, *own))


def _captions(database: Database, id: int) -> tuple[str, ...]:
    rows = database.rows("SELECT text FROM captions WHERE picture = ? ORDER BY place", [id])
    return tuple(row[0] for row in rows)


def write_captions_of(database: Database, id: int, captions: tuple[str, ...]) -> None:
    """Captions of a picture, in place of those that it had."""
    database.run("DELETE FROM captions WHERE picture = ?", [id])
    captions = tuple(dict.fromkeys(map(sound, captions)))
    rows = [(id, place, text, content_of_text(text)) for place, text in enumerate(captions)]
    database.run_many("INSERT INTO captions VALUES (?, ?, ?, ?)", rows)
    database.run("UPDATE pictures SET captions = ? WHERE id = ?", [joined(captions), id])
