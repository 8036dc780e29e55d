"""What people see of packing at its end: what the pack holds."""

from __future__ import annotations

import shlex
from pathlib import Path

from cliplet.console import counted
from cliplet.data.packing import PackResult
from cliplet.results import PackSummary


def summary(result: PackResult, out: Path) -> str:
    """What the pack holds, for the end of the command."""
    manifest = result.manifest
    splits = ", ".join(f"{name or '(none)'} {count['pictures']:,}" for name, count in manifest.splits.items())
    pictures = sum(shard.pictures for shard in manifest.shards)
    lines = [
        f"{counted(pictures, 'picture')} ({splits}), "
        f"{counted(sum(shard.captions for shard in manifest.shards), 'caption')}, "
        f"{counted(len(manifest.shards), 'shard')}, {sum(shard.bytes for shard in manifest.shards) / 1e6:,.1f} MB; "
        f"{counted(manifest.left_out, 'picture')} left out"
    ]
    if result.packed:
        lines.append(
            f"{counted(result.packed, 'picture')} in {result.seconds:,.1f} s: "
            f"{result.packed / result.seconds:,.0f} pictures/s"
        )
    else:
        lines.append("The pack was complete already; nothing was done.")
    if result.quarantine:
        lines.append(result.quarantine.summary())
    return "\n".join([*lines, f"next: cliplet train RECIPE --data.path {shlex.quote(str(out))}"])


def packed(result: PackResult, out: Path) -> PackSummary:
    """The same for programs."""
    shards = result.manifest.shards
    return PackSummary(
        out=str(out),
        pictures=sum(shard.pictures for shard in shards),
        captions=sum(shard.captions for shard in shards),
        left_out=result.manifest.left_out,
        shards=len(shards),
        bytes=sum(shard.bytes for shard in shards),
        packed_now=result.packed,
        seconds=result.seconds,
    )
