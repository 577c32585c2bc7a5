"""From a source to an artifact: read, quantize, write, check, and only then rename into place.

Everything is written into a hidden folder beside the target. A failure at any moment leaves neither a half-
written artifact nor a damaged old one. Whatever ends an export, an error, Ctrl-C or the system, leaves its
journal: the same command goes on after the last block that was done, and makes the artifact that it would
have made.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flatlm import __version__
from flatlm.export import calibrate, execute, ops, target
from flatlm.export.archs import build_graph
from flatlm.export.bigrams import bigrams
from flatlm.export.journal import Journal, key
from flatlm.export.passages import passages
from flatlm.export.quantize import quantize
from flatlm.export.quick import quick
from flatlm.export.recipe import Recipe
from flatlm.export.report import Report
from flatlm.export.sources.source import Source
from flatlm.export.token_rows import require_rows
from flatlm.export.workplace import ARTIFACT, JOURNAL, workplace
from flatlm.runtime.drafting.bigrams import BIGRAMS
from flatlm.runtime.errors import FlatlmError, SourceError
from flatlm.runtime.format.artifact import Manifest, write_manifest
from flatlm.runtime.format.graph import Graph
from flatlm.runtime.format.nested import is_low
from flatlm.runtime.text.prompt import load_template
from flatlm.runtime.text.tokenizer import load_tokenizer

Tell = Callable[[str], Callable[[int, int], None]]  # names a stage, returns its progress function
CHECK_TOKENS = 256  # of the calibration text, on which the written file is compared with the float model


@dataclass(frozen=True, slots=True)
class Exported:
    path: Path
    manifest: Manifest
    report: Report


def export(
    source: Source,
    out: Path,
    recipe: Recipe,
    *,
    tell: Tell,
    text: Path | None = None,
    force: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Exported:
    """Write the artifact folder `out`. `text` replaces the shipped calibration text; `say` takes words for
    people.

    Raises UsageError where `out` may not be made or, with `force`, replaced (export/target.py), SourceError,
    ResourceError on a full disk.
    """
    out = target.check(out, force, source.path)
    words = calibrate.text(text)
    notes = list(source.notes)
    float_graph = build_graph(source, notes, recipe.context)
    for note in notes:
        say(note)
    with workplace(out, say) as place:
        folder = place / ARTIFACT
        copy_files(source, folder)
        tokenizer, template = load_tokenizer(folder), load_template(folder)
        looked = recipe.windows > 0
        tokens = passages(tokenizer, template, words, recipe.windows) if looked else np.zeros(0, np.int64)
        ids, rows = tokenizer.encode(words, special=False), int(float_graph.metadata["vocab_size"])
        require_rows(tokenizer, template, [*ids, *tokens.tolist()], rows)
        if looked:
            journal = Journal.open(place / JOURNAL, key(source.digest, recipe, tokens, __version__), say)
            graph, report = quantize(float_graph, recipe, tokens, tell, journal)
        else:
            graph, report = quick(float_graph, recipe, tell("rounding"))
        report = dataclasses.replace(report, notes=tuple(notes))
        from flatlm.export.onnx_writer import write_onnx

        written = write_onnx(graph, folder, tell("writing"))
        table = bigrams(ids, rows)
        (folder / BIGRAMS).write_bytes(table.astype("<i4").tobytes())
        checked = {"check": _compare(float_graph, written, tokens, tell("checking"))} if looked else {}
        manifest = write_manifest(
            folder, tell("hashing"), **_manifest_fields(source, graph, report, tokens, checked)
        )
        target.check(out, force, source.path)  # minutes later: it may have been made, or filled
        _rename_into_place(folder, out)
    return Exported(out, manifest, report)


def copy_files(source: Source, folder: Path) -> None:
    for name, content in source.files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else _bytes_of(content))


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from error


def _compare(
    float_graph: Graph, written: Graph, tokens: np.ndarray, progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """The file as written, read back, against the float model: KL and top-1 agreement on a little text."""
    progress(0, 2)
    window = tokens[-calibrate.longest(written) :][None, :CHECK_TOKENS]
    scores = execute.evaluate(written, window, reference=float_graph)
    progress(2, 2)
    if scores.kl is None or not np.isfinite(scores.kl):
        raise FlatlmError(
            "the exported model gives no finite logits: no artifact made. Try --recipe w8a8, and report this"
        )
    return {"tokens": int(window.size), "kl_to_float": scores.kl, "top1_agreement": scores.top1}


def _manifest_fields(
    source: Source, graph: Graph, report: Report, tokens: np.ndarray, checked: dict[str, Any]
) -> dict[str, Any]:
    recipe, parameters = report.recipe, _parameters(graph)
    return {
        "name": source.name,
        "architecture": graph.metadata["architecture"],
        "recipe": recipe.name,
        "vocab_size": int(graph.metadata["vocab_size"]),
        "context_length": int(graph.metadata["context_length"]),
        "parameters": parameters,
        "bits_per_weight": 8 * report.bytes_total / parameters,
        "layers": report.rows(),
        "totals": report.totals() | checked,
        "calibration": {"tokens": len(tokens), "source": source.digest} | asdict(recipe),
    }


def _parameters(graph: Graph) -> int:
    """Weights of matrices (a tied matrix counts once, the planes of a nested one too) and of norms."""
    sizes = {}
    for node in (node for node in graph.nodes if not is_low(node)):
        if parameters := ops.of(node.op).parameters:
            sizes[node.inputs[1]] = parameters(graph, node)
    return sum(sizes.values())


def _rename_into_place(folder: Path, out: Path) -> None:
    """Swap in the finished folder; an old one is removed only after the new one stands."""
    if not out.exists():
        os.replace(folder, out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".old", dir=out.parent))
    try:
        os.replace(out, old / out.name)
        os.replace(folder, out)
    finally:
        if not out.exists():  # failed, or interrupted between the two
            os.replace(old / out.name, out)
        shutil.rmtree(old, ignore_errors=True)
