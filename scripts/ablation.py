"""What each ingredient of a recipe gives: the ablation table of docs/quantization.md.

    python scripts/ablation.py smollm2-135m-instruct --text wiki.test.raw --tokens 8192 --json ablation.json

SRC is what `flatlm export` takes. Two ladders, with 4-bit and with 8-bit weights; each step adds one thing
to the one before it. A row quantizes in memory and is compared with the float model in float32 BLAS
(export/execute.py: the integers are exact, sums are rounded otherwise than on a device): perplexity,
KL(float ‖ quantized) in nats, bits per weight between embedding and head, and the multiplications that
flattening of activations adds in flatlm's kernels (the second product of `nested` is not counted). What is
done is kept in the file of --json, so a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from flatlm.export import calibrate, execute
from flatlm.export.archs import build_graph
from flatlm.export.exporter import copy_files
from flatlm.export.passages import passages
from flatlm.export.quantize import quantize
from flatlm.export.recipe import INGREDIENTS, RECIPES, Recipe
from flatlm.export.sources import open_source
from flatlm.runtime.text.prompt import load_template
from flatlm.runtime.text.tokenizer import load_tokenizer

WINDOW = 512


def without(*given: str) -> tuple[str, ...]:
    """All ingredients but these, to be skipped."""
    return tuple(name for name in INGREDIENTS if name not in given)


_PLAIN4 = replace(
    RECIPES["edge"], weight_bits="4", activations="static", wide_channels=0.05, two_digits=(), sigma=20.0
)
_PLAIN8 = replace(RECIPES["naive8"], activations="static", wide_channels=0.12, windows=16, margin=1.05)
_TOKEN = {"activations": "token", "wide_channels": RECIPES["edge"].wide_channels}
_DIGITS4 = _TOKEN | {"two_digits": RECIPES["edge"].two_digits}
_DIGITS8 = _TOKEN | {"two_digits": RECIPES["w8a8"].two_digits, "wide_channels": RECIPES["w8a8"].wide_channels}

LADDERS: dict[str, dict[str, Recipe]] = {
    "4-bit weights, a step per row": {
        "naive": replace(_PLAIN4, skip=INGREDIENTS),
        "+ smooth": replace(_PLAIN4, skip=without("smooth")),
        "+ flatten activations, static step": replace(_PLAIN4, skip=without("smooth", "flatten")),
        "+ a step per token": replace(_PLAIN4, **_TOKEN, skip=without("smooth", "flatten")),
        "+ two digits for `down`": replace(_PLAIN4, **_DIGITS4, skip=without("smooth", "flatten")),
        "+ sparse flattening of weights": replace(
            _PLAIN4, **_DIGITS4, sigma=2.5, skip=without("smooth", "flatten")
        ),
        "+ GPTQ, biases corrected": replace(_PLAIN4, **_DIGITS4, sigma=2.5, skip=()),
        "+ bits by KL (`edge`)": replace(RECIPES["edge"]),
    },
    "8-bit weights": {
        "naive (`naive8`), a step per tensor": replace(_PLAIN8, skip=INGREDIENTS),
        "+ smooth, split": replace(_PLAIN8, skip=without("smooth", "split")),
        "+ flatten activations, static step": replace(_PLAIN8, skip=without("smooth", "split", "flatten")),
        "+ GPTQ, biases corrected": replace(_PLAIN8, skip=()),
        "+ a step per token": replace(_PLAIN8, **_TOKEN, skip=()),
        "+ two digits for `out` and `down`": replace(_PLAIN8, **_DIGITS8, skip=()),
        "+ a weight step per row (`w8a8`)": replace(_PLAIN8, **_DIGITS8, weight_scale="channel", skip=()),
        "+ sparse flattening of weights, two planes (`nested`)": replace(RECIPES["nested"]),
    },
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument(
        "--windows", type=int, default=16, help="calibration windows (default 16, a recipe's: 32)"
    )
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    source = open_source(args.source, sys.stderr)
    graph = build_graph(source)
    with tempfile.TemporaryDirectory() as folder:
        copy_files(source, Path(folder))
        tokenizer, template = load_tokenizer(Path(folder)), load_template(Path(folder))
    tokens = passages(tokenizer, template, calibrate.text(), args.windows)
    text = args.text.read_text(encoding="utf-8")[: 8 * args.tokens]
    ids = np.array(tokenizer.encode(text, special=False)[: args.tokens], np.int64)
    test = ids[: len(ids) // WINDOW * WINDOW].reshape(-1, WINDOW)
    done: dict[str, Any] = json.loads(args.json.read_text()) if args.json.exists() else {}
    for ladder, rows in LADDERS.items():
        found = done.setdefault(ladder, {})
        for name, recipe in rows.items():
            if name not in found:
                found[name] = measure(graph, replace(recipe, windows=args.windows), tokens, test)
                args.json.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
            print(f"{ladder}: {name}: {found[name]}", file=sys.stderr)
    for ladder in LADDERS:
        print(table(ladder, done[ladder]))


def measure(graph, recipe: Recipe, tokens: np.ndarray, test: np.ndarray) -> dict[str, Any]:
    started = time.perf_counter()
    result, report = quantize(graph, recipe, tokens)
    scores = execute.evaluate(result, test, reference=graph)
    return asdict(scores) | {
        "bits": report.bits_per_weight,
        "extra_work": report.extra_work_native,
        "tokens": int(test.size),
        "seconds": time.perf_counter() - started,
    }


def table(ladder: str, rows: dict[str, dict[str, Any]]) -> str:
    lines = [
        f"\n| {ladder} | bits per weight | KL | same top token | perplexity | extra work |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row['bits']:.2f} | {row['kl']:.4f} | {100 * row['top1']:.1f} % | "
            f"{row['perplexity']:.2f} | {100 * row['extra_work']:.1f} % |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
