"""How many cores this process may use."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of control groups 2: microseconds that may be used, and of how many


@cache
def cores() -> int:
    """Cores that this process may run on: those it is bound to, and no more than its container is given."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        used, of = CGROUP_QUOTA.read_text().split()
        return max(1, min(bound, int(used) // int(of)))
    except (OSError, ValueError):  # no control groups, or "max"
        return max(1, bound)
