"""Fingerprints of logits: the same bits before and after a change, on any backend and processor.

    python scripts/logit_hashes.py MODEL [--backend native numpy ort] [--tokens 96]

A line a backend: the SHA-256 of all logits of a text of fixed ids, read at once, cut anywhere, id by id, by
one thread and two. All readings must agree; where one does not, its line says so and the exit status is 1.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from contextlib import closing
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from flatlm.runtime.backends import open_backend
from flatlm.runtime.format.artifact import open_artifact
from flatlm.runtime.options import BackendOptions

CUTS = {"at once": (1.0,), "cut": (0.07, 0.4, 0.41, 1.0), "id by id": None}


def pieces(ids: np.ndarray, cuts: tuple[float, ...] | None) -> list[np.ndarray]:
    """`ids` in parts that end at these shares of them; None: one by one."""
    if cuts is None:
        return np.split(ids, len(ids))
    return [part for part in np.split(ids, [round(share * len(ids)) for share in cuts[:-1]]) if len(part)]


def fingerprint(backend, ids: np.ndarray, cuts: tuple[float, ...] | None) -> str:
    """SHA-256 of the logits of every position."""
    digest = hashlib.sha256()
    backend.truncate(0)
    for part in pieces(ids, cuts):
        digest.update(np.ascontiguousarray(backend.forward(part, logits=len(part)), np.float32).tobytes())
    return digest.hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--backend", nargs="+", default=["native"], choices=("native", "numpy", "ort"))
    parser.add_argument("--tokens", type=int, default=96)
    args = parser.parse_args()
    artifact = open_artifact(args.model)
    ids = np.random.default_rng(7).integers(0, artifact.manifest.vocab_size, args.tokens)
    first, same = "", True
    for name in args.backend:
        found: dict[str, str] = {}
        for threads in (1, 2):
            with closing(
                open_backend(name, artifact, BackendOptions(threads=threads, ctx=args.tokens))
            ) as backend:
                for how, cuts in CUTS.items():
                    found[f"{how}, {threads} threads"] = fingerprint(backend, ids, cuts)
        first = first or next(iter(found.values()))
        odd = [how for how, digest in found.items() if digest != first]
        same = same and not odd
        print(
            f"{args.model.name} {name} {next(iter(found.values()))} {'; '.join(odd) or 'all agree'}",
            flush=True,
        )
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
