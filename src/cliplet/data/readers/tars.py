"""The members of an uncompressed tar, one after the other. Nothing is taken out of it to the disk."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from cliplet.data.readers.folders import CAPTION_ENDINGS, ENDINGS

PICTURES = frozenset(ending[1:] for ending in ENDINGS)
CAPTIONS = tuple(ending[1:] for ending in CAPTION_ENDINGS)
# WebDataset's own rule: the key is the path up to the first dot of the base name; .hidden has none.
KEY = re.compile(r"((?:.*/|)[^./]+)\.([^/]*)", re.DOTALL)
META = re.compile(r"__[^/]*__($|/)")  # WebDataset passes over these
MAX_TEXT = 2**22  # bytes of a .json or .txt; more is no caption
BUFFER = 2**16
BLOCK = tarfile.BLOCKSIZE
ZEROS = bytes(BLOCK)
END_MARK = 2 * BLOCK  # bytes of zeros; most programs fill the file up with more of them
MAGIC, MAGIC_AT = b"ustar", 257  # in a header's block
STRETCH = 2**20  # bytes read at a time where there are no members
PAX_THAT_MATTERS = re.compile(rb" (?:path|size|linkpath|hdrcharset|GNU\.sparse[^=]*)=")
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}

Header = tuple[str, int, int, int, str]  # name, where the content begins, its size, the next header, why not to take it


@dataclass(frozen=True, slots=True)
class Member:
    key: str
    ending: str
    name: str
    offset: int
    size: int
    text: bytes | None  # of a .json or a caption file; None for pictures and for what is too large


class Damage(Exception):
    """The tar cannot be read on. `key`: of the member that it breaks off in, where that is known; `resume`: the byte
    of the next header behind the damage, where one was found."""

    def __init__(self, reason: str, key: str | None = None, resume: int | None = None):
        super().__init__(reason)
        self.reason, self.key, self.resume = reason, key, resume


def members(stream: BinaryIO, problem: Callable[[str, str], None], begin: int = 0) -> Iterator[Member]:
    """Pictures, captions and JSON in the tar's order; `problem(name, reason)` is told of members that are left out.

    Tars that were joined to one file are read one after the other. `begin`: where a Damage before said to resume.
    Raises Damage where the tar cannot be read on.
    """
    end = stream.seek(0, 2)
    if begin == 0:
        _check_kind(stream, end)
    at = begin
    while True:
        header = _header(stream, at, end)
        if header is None:
            joined = _joined_tar(stream, begin, at, end)
            if joined is None:
                return
            begin = at = joined
            continue
        name, start, size, at, reason = header
        match = KEY.fullmatch(name)
        if start + size > end:
            raise Damage(f"is cut short: it ends after {end:,} bytes", match[1] if match else None)
        if name.startswith("/") or (".." in name and ".." in re.split(r"[/\\]", name)):
            reason = "its name leads out of the shard"
        if reason:
            problem(name, f"{reason}; it is left out")
        elif match and not META.match(name):
            ending = match[2].lower()
            if ending in PICTURES:
                yield Member(match[1], ending, name, start, size, None)
            elif ending == "json" or ending in CAPTIONS:
                text = None
                if size <= MAX_TEXT:
                    stream.seek(start)
                    text = stream.read(size)
                yield Member(match[1], ending, name, start, size, text)


def _check_kind(stream: BinaryIO, end: int) -> None:
    stream.seek(0)
    head = stream.read(BLOCK)
    for magic, method in COMPRESSED.items():
        if head.startswith(magic):
            raise Damage(f"is compressed ({method}); decompress it, for pictures are read from the middle of a shard")
    if len(head) < BLOCK or (head != ZEROS and not _other_header(stream, 0)):
        raise Damage("is empty" if end == 0 else "is not a tar")


def _header(stream: BinaryIO, at: int, end: int) -> Header | None:
    """The member whose header stands at byte `at`; None at the tar's end. Raises Damage."""
    stream.seek(min(at, end))  # a size that lies may be too large to seek
    block = stream.read(BLOCK)
    if len(block) < BLOCK:
        raise Damage(f"is cut short: it ends after {end:,} bytes")
    if block == ZEROS:
        return None
    start = at + BLOCK
    plain = _plain(block)
    # Python writes a time with fractions as a header of its own before each member.
    if plain and plain[0] == b"x" and plain[2] <= BUFFER:
        start += _whole_blocks(plain[2])
        dull = not PAX_THAT_MATTERS.search(stream.read(start - at - BLOCK))
        plain = _plain(stream.read(BLOCK)) if dull else None
        start += BLOCK
    if plain and plain[0] != b"x":
        _, name, size = plain
        return name, start, size, start + _whole_blocks(size), ""
    header = _other_header(stream, at)
    if header is None or header[2] < 0 or header[3] <= at:  # backwards it would go on for ever
        raise Damage(f"is damaged at byte {at:,} of {end:,}; what comes after is left out")
    return header


def _joined_tar(stream: BinaryIO, begin: int, at: int, end: int) -> int | None:
    """Where another tar begins after the zeros at byte `at`, which end the tar from `begin` on; None where nothing
    comes after them. Raises Damage for zeros that are no tar's end, and for what is no tar."""
    after = _after_zeros(stream, at, end)
    if after >= end:
        return None
    stream.seek(after)
    follows = _is_header(stream.read(BLOCK))
    filled_up = 0 in (after % tarfile.RECORDSIZE, (after - begin) % tarfile.RECORDSIZE)
    if follows and (after - at == END_MARK or (after - at > END_MARK and filled_up)):
        return after
    resume = after if follows else _next_header(stream, after)
    if resume is None:
        raise Damage(f"holds {end - after:,} bytes after its end mark that are no tar members; they are left out")
    reason = f"holds {resume - at:,} bytes from byte {at:,} on that are no tar members; what stood there is lost"
    raise Damage(reason, resume=resume)


def _after_zeros(stream: BinaryIO, at: int, end: int) -> int:
    """The first block from byte `at` on that is not all zeros; `end` where there is none."""
    stream.seek(at)
    while data := stream.read(STRETCH):
        if data != bytes(len(data)):
            return at + (len(data) - len(data.lstrip(b"\0"))) // BLOCK * BLOCK
        at += len(data)
    return end


def _next_header(stream: BinaryIO, at: int) -> int | None:
    """The first header from byte `at` on."""
    stream.seek(at)
    while data := stream.read(STRETCH):
        found = data.find(MAGIC)
        while found >= 0:
            start = found - MAGIC_AT
            if start >= 0 and start % BLOCK == 0 and _is_header(data[start : start + BLOCK]):
                return at + start
            found = data.find(MAGIC, found + 1)
        at += len(data)
    return None


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")  # it holds the block against its checksum
    except (tarfile.TarError, ValueError):
        return False
    return True


def _plain(block: bytes) -> tuple[bytes, str, int] | None:
    """Kind, name and size in the header of a file, or of a pax record; None for all that is less usual.

    tarfile does this too, and takes five times as long, which is minutes for a million pictures.
    """
    kind = block[156:157]
    if kind not in (b"0", b"\0", b"x") or block[345] or block[124] & 128:
        return None
    try:
        checksum = int(block[148:156].partition(b"\0")[0], 8)
        size = int(block[124:136].partition(b"\0")[0], 8)
    except ValueError:
        return None
    if checksum != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        return None
    name = block[:100].partition(b"\0")[0].decode("utf-8", "surrogateescape")
    return None if name.endswith("/") else (kind, name, size)


def _other_header(stream: BinaryIO, at: int) -> Header | None:
    """The same of any kind of member by tarfile, and why it is left out; None where it can make nothing of it."""
    stream.seek(at)
    try:
        tar = tarfile.TarFile(fileobj=stream)
        info = tar.next()
    # Damaged sizes make it raise the last four.
    except (tarfile.TarError, ValueError, OverflowError, RecursionError, MemoryError):
        return None
    if info is None:
        return None
    reason = ""
    if info.issym() or info.islnk():
        reason = "is a link"
    elif not (info.isreg() or info.isdir()):
        reason = "is no file but a device or the like"
    elif info.issparse():
        reason = "is stored as a sparse file"
    return info.name, info.offset_data, info.size if info.isreg() else 0, tar.offset, reason


def _whole_blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
