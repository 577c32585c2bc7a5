"""Perplexity of a source model in float32, by the protocol of `flatlm eval ppl`.

    python scripts/float_perplexity.py smollm2-135m-instruct --text wiki.test.raw --tokens 40960

Windows of 512 tokens without a begin token, mean of −log p over positions 1 … 511. Needs flatlm[export].
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

from flatlm.export import execute
from flatlm.export.archs import build_graph
from flatlm.export.sources import open_source
from flatlm.runtime.text.tokenizer import load_tokenizer

WINDOW = 512


def main() -> int:
    parser = argparse.ArgumentParser(description="Perplexity of a source model in float32.")
    parser.add_argument("source", help="what `flatlm export` takes")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=40960)
    args = parser.parse_args()
    source = open_source(args.source, sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        for name, content in source.files.items():
            data = content if isinstance(content, bytes) else content.read_bytes()
            Path(folder, name).write_bytes(data)
        ids = load_tokenizer(folder).encode(args.text.read_text(encoding="utf-8"), special=False)
    windows = np.array(ids[: args.tokens // WINDOW * WINDOW], np.int64).reshape(-1, WINDOW)
    scores = execute.evaluate(build_graph(source), windows)
    print(f"perplexity {scores.perplexity:.4f}  nll {scores.nll:.5f}  ({windows.size} tokens)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
