"""How fast and how right a library is searched.

    python benchmarks/search.py vectors --images images.npy --texts texts.npy [--rows 1000000] [--seed 0]
        [--folder runs/bench-search] [--reuse]
    python benchmarks/search.py index --data path/to/flickr8k --model MODEL [--rounds 3]
    python benchmarks/search.py start --library LIBRARY [--rounds 11] [--peer 'rclip --no-preview']
    python benchmarks/search.py fits --data path/to/flickr8k --model MODEL

`vectors`: a matrix of so many vectors, made from the pictures' features that are given, and sentences' features as
queries; cliplet beside FAISS. See search_vectors.py.

`index`: `cliplet index` beside `cliplet embed` of the same pictures, in turns; a second run; 100,000 empty-handed
stats. `start`: `cliplet search` from a cold start, a peer's command beside it. `fits`: how often "nothing fits" is said
where nothing does, and where something does. See search_library.py.

Exit status 1 where an aim is missed: `vectors` a median of 5 ms and 0.98 of the ten nearest of a sentence; `index` 1.15
times `cliplet embed`, 3 s for the second run, 5 s for the stats; `start` 1 s.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import search_library
import search_vectors


def vectors(options: argparse.Namespace) -> bool:
    """Returns whether the aims are met, as all of these do."""
    asked = (options.folder, options.rows, options.seed, options.reuse)
    return search_vectors.measure(options.images, options.texts, *asked)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parts = parser.add_subparsers(dest="part", required=True)
    part = parts.add_parser("vectors", help="a million vectors, beside FAISS")
    part.add_argument("--images", type=Path, required=True, help="features of real pictures, .npy (N, D)")
    part.add_argument("--texts", type=Path, required=True, help="features of real sentences, .npy (M, D)")
    part.add_argument("--rows", type=int, default=1_000_000)
    part.add_argument("--seed", type=int, default=0)
    part.add_argument("--folder", type=Path, default=Path("runs/bench-search"), help="for matrices and indices")
    part.add_argument("--reuse", action="store_true", help="search what an earlier run built")
    part.set_defaults(work=vectors)
    part = parts.add_parser("index", help="beside cliplet embed")
    part.add_argument("--data", type=Path, required=True, help="Flickr8k, with its folder images")
    part.add_argument("--model", type=Path, required=True)
    part.add_argument("--rounds", type=int, default=3)
    part.set_defaults(work=lambda o: search_library.index(o.data, o.model, o.folder, o.rounds))
    part = parts.add_parser("start", help="from a cold start")
    part.add_argument("--library", type=Path, required=True)
    part.add_argument("--rounds", type=int, default=11)
    part.add_argument("--peer", default="", help="another tool's command, to which a query is added")
    part.set_defaults(work=lambda o: search_library.start(o.library, o.rounds, o.peer))
    part = parts.add_parser("fits", help="telling when nothing fits")
    part.add_argument("--data", type=Path, required=True, help="Flickr8k with its JSON")
    part.add_argument("--model", type=Path, required=True)
    part.set_defaults(work=lambda o: search_library.fits(o.data, o.model, o.folder))
    for part in parts.choices.values():
        if not any(action.dest == "folder" for action in part._actions):
            part.add_argument("--folder", type=Path, default=Path("runs/bench-search"), help="for what is made")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    return 0 if options.work(options) else 1


if __name__ == "__main__":
    sys.exit(main())
