"""`cliplet index --workers ray`: the same run, with pictures read and embedded by Ray Data on any number of machines.

    driver   looks through the folders, gives out blocks of files, and alone changes the library
    workers  read, hash, embed, and write files of the table that do not belong to it yet (`bulk_worker.py`)

The driver makes such files part of the table every few seconds, each block's once. Pictures whose rows depend on what
the library holds (changed ones, and those that may have moved) come back to it and take the way of a local run. So
there is nothing to keep of a run: after a kill, what is in the table is known by path, size and time.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cliplet.errors import ClipletError, ConfigError, DataError, ImageError, ModelError
from cliplet.library.bulk_worker import Job, Model, Reading, Task, model_files, tasks_table
from cliplet.library.choices import is_installed
from cliplet.library.indexing import COMMIT_SECONDS, Indexing, _Batch, _Read
from cliplet.library.lance_tables import INSTALL
from cliplet.library.lance_writer import LanceWriter
from cliplet.library.scan import Scan, Seen

if TYPE_CHECKING:
    from cliplet.library.records import Identity
    from cliplet.runtime.encoder import Encoder

IN_BLOCK, IN_BLOCK_LEAST = 256, 16  # files: a worker that is lost takes a few seconds' work with it
BLOCKS_A_WORKER = 4  # at least, where there are few files
DEATHS = 8  # of workers over one block, after which the files in it are to blame
STORE_BYTES = 2**28  # of Ray's memory for objects, where Ray is started on this machine for the run
CORES_A_WORKER = 1
