"""How far quantized models are from their float model, flatlm's and llama.cpp's, on the same tokens.

    python scripts/compare_quality.py MODEL.gguf OUT --degrid -t Q4_0,Q4_K_M,Q8_0 --recipes edge,w8a8 \\
        --text wiki.test.raw --text code

MODEL.gguf is often a 4-bit file itself, whose own format then loses nothing. So its own type should not be
among -t, and --degrid adds noise of a third of the file's step to every matrix, by a fixed seed: no
format's grid fits any longer. The float model goes to OUT/NAME-F16.gguf, from which llama.cpp quantizes
(its own choices for embedding and head) and `flatlm export` makes an artifact for each recipe; --artifact
adds finished ones.

The reference is llama.cpp on the F16 file. Windows of 512 without a begin token, as `flatlm eval` has them;
a model's row has perplexity, KL(reference ‖ model) in nats, share of positions with the same likeliest
token, and bits per weight: bytes of all tensors (flatlm: of model.onnx and its data) over the reference's
weights, and of the matrices between embedding and head over theirs. `code` as a text is this Python's own
standard library, the files of CODE, which are not in the calibration text. What is done is kept in OUT, so a
run that was stopped, or that gets another model, goes on. Needs flatlm[export,bench].
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from llama_peer import LlamaPeer
from make_gguf import quantize, write_f16

from flatlm.export.parallel import each
from flatlm.export.probabilities import log_softmax
from flatlm.export.recipe import RECIPES
from flatlm.runtime.backends import open_backend
from flatlm.runtime.format.artifact import open_artifact
from flatlm.runtime.format.graph import in_body
from flatlm.runtime.measuring.bench import markdown
from flatlm.runtime.options import BackendOptions
from flatlm.runtime.progress import ProgressLine

WINDOW = 512
ROWS = 8  # positions compared at a time: their logits stay in the cache
CODE = (
    *("argparse.py", "ast.py", "asyncio/base_events.py", "collections/__init__.py", "configparser.py"),
    *("dataclasses.py", "difflib.py", "http/client.py", "inspect.py", "logging/__init__.py", "pathlib.py"),
    *("sqlite3/dump.py", "tarfile.py", "tempfile.py", "threading.py", "unittest/case.py", "zipfile.py"),
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A model on a text. KL in nats; bits per weight of the file and of the body."""

    model: str
    bits_file: float
    bits_body: float
    perplexity: float
    ratio: float  # to the reference's perplexity
    kl: float
    kl_error: float  # standard error of the mean
    kl_median: float
    kl_p99: float
    top1: float
    tokens: int


def main() -> None:
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    name = (args.name or args.source.stem) + ("-degridded" if args.degrid else "")
    plain = args.out / f"{name}-F16.gguf"
    if not plain.exists():
        write_f16(args.source, plain, change=noisy if args.degrid else None, tie=True)
    files = {kind: args.out / f"{name}-{kind}.gguf" for kind in args.types}
    for kind, path in files.items():
        if not path.exists():
            quantize(plain, path, kind, args.threads)
    folders = {recipe: exported(plain, args.out / f"{name}-{recipe}", recipe) for recipe in args.recipes}
    folders |= dict(args.artifact)
    sizes = {kind: gguf_bits(path, plain) for kind, path in files.items()}
    sizes |= {label: artifact_bits(path, plain) for label, path in folders.items()}
    summary_file = args.out / f"{name}.json"
    result = json.loads(summary_file.read_text()) if summary_file.exists() else {}
    for text in args.text:
        label = Path(text).stem
        records = compare(plain, files, folders, text, args, args.out / f"{name}-{label}.npz")
        rows = [summary(model, sizes[model], records) for model in sizes]
        result[f"{label}, {rows[0].tokens} tokens"] = [asdict(row) for row in rows]
        print(f"\n{name}, {label}, {rows[0].tokens} tokens, perplexity of F16 {reference(records):.3f}\n")
        print(table(rows))
        summary_file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def arguments() -> argparse.Namespace:
    def named(text: str) -> tuple[str, Path]:
        name, _, path = text.partition("=")
        return name, Path(path)

    def listed(text: str) -> list[str]:
        return [item for item in text.split(",") if item]

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="GGUF file")
    parser.add_argument("out", type=Path, help="folder for what is made")
    parser.add_argument("--name", help="of the files made (default: the source's)")
    parser.add_argument("--degrid", action="store_true", help="add noise of a third of the source's step")
    parser.add_argument("-t", "--types", type=listed, default=["Q4_0", "Q4_K_M", "Q5_K_M", "Q8_0"])
    parser.add_argument("--recipes", type=listed, default=[], help=f"of {', '.join(RECIPES)}")
    parser.add_argument("--artifact", type=named, action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--text", action="append", required=True, help="a file, or `code`")
    parser.add_argument("--tokens", type=int, default=40960)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


# ------------------------------------------------------------------------------------------------ models
def noisy(tensor: gguf.ReaderTensor, values: np.ndarray) -> np.ndarray:
    """values [n, k] with Gaussian noise of σ = a third of the source's step there; the seed is the name."""
    if values.ndim < 2:
        return values
    seed = np.frombuffer(tensor.name.encode(), np.uint8)
    noise = np.random.default_rng(seed).standard_normal(values.shape, np.float32)
    return values + noise * (steps(values, tensor.tensor_type.name) / 3)


def steps(values: np.ndarray, kind: str) -> np.ndarray:
    """The distance of neighbouring levels around each value, like values [n, k]; 0 in types of floats.

    A block's values lie on one grid, so it is the least distance of two that differ.
    """
    if kind.startswith(("F", "BF")):
        return np.zeros_like(values)
    blocks = values.reshape(-1, 16 if kind in ("Q2_K", "Q3_K", "Q6_K") else 32)
    if kind == "Q8_0":  # 32 values rarely have neighbours among 255 levels
        step = np.abs(blocks).max(1) / 127
    else:
        gaps = np.diff(np.sort(blocks, 1), axis=1)
        gaps[gaps <= 1e-6 * np.abs(blocks).max(1, keepdims=True)] = np.inf
        step = gaps.min(1)
        step[np.isinf(step)] = 0
    return np.broadcast_to(step[:, None], blocks.shape).reshape(values.shape).astype(np.float32)


def exported(source: Path, folder: Path, recipe: str) -> Path:
    if not folder.exists():
        call = "import sys; from flatlm.runtime.cli import main; sys.exit(main())"  # its memory ends with it
        command = [sys.executable, "-c", call, "export", source, folder, "--recipe", recipe]
        subprocess.run([*map(str, command)], check=True, stdout=subprocess.DEVNULL)
    return folder


def weights(plain: Path) -> tuple[int, int]:
    """Weights of the float model, and those between embedding and head."""
    sizes = {tensor.name: int(tensor.n_elements) for tensor in gguf.GGUFReader(plain).tensors}
    return sum(sizes.values()), sum(size for name, size in sizes.items() if name.startswith("blk."))


def gguf_bits(path: Path, plain: Path) -> tuple[float, float]:
    """Bits per weight of all tensors, and of the body."""
    sizes = {tensor.name: int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors}
    total, body = weights(plain)
    return 8 * sum(sizes.values()) / total, 8 * sum(
        size for name, size in sizes.items() if name.startswith("blk.")
    ) / body


def artifact_bits(folder: Path, plain: Path) -> tuple[float, float]:
    total, body = weights(plain)
    graph = open_artifact(folder).graph
    own = sum(t.data.nbytes for name, t in graph.constants.items() if in_body(name))
    return 8 * sum(
        (folder / file).stat().st_size for file in ("model.onnx", "model.onnx.data")
    ) / total, 8 * own / body


# -------------------------------------------------------------------------------------------- comparison
def compare(
    plain: Path,
    files: Mapping[str, Path],
    folders: Mapping[str, Path],
    text: str,
    args: argparse.Namespace,
    kept: Path,
) -> dict[str, np.ndarray]:
    """By model, float32 [windows, positions, 3]: KL, same likeliest token, −ln p; kept in the file `kept`."""
    with ExitStack() as stack:

        def llama(path: Path) -> LlamaPeer:
            peer = LlamaPeer(path, threads=args.threads, context=WINDOW)
            stack.callback(peer.close)
            return peer

        def ours(folder: Path) -> Any:
            backend = open_backend(
                "native", open_artifact(folder), BackendOptions(threads=args.threads, ctx=WINDOW)
            )
            stack.callback(backend.close)
            return backend

        wanted = llama(plain)
        ids = wanted.encode(read(text)[: 8 * args.tokens])[: args.tokens]
        windows = ids[: len(ids) // WINDOW * WINDOW].reshape(-1, WINDOW)
        count, (windows, records) = len(windows), load(kept, windows)
        opened: dict[str, Callable[[], Any]] = {name: lambda p=path: llama(p) for name, path in files.items()}
        opened |= {name: lambda p=path: ours(p) for name, path in folders.items()}
        for name in ("F16", *opened):
            records.setdefault(name, np.full((len(windows), WINDOW - 1, 3), np.nan, np.float32))
        left = {name: make() for name, make in opened.items() if np.isnan(records[name][:count]).any()}
        line = ProgressLine(f"{kept.stem}: {', '.join(left)}") if left else None
        for i, window in enumerate(windows[:count]):
            todo = {name: model for name, model in left.items() if np.isnan(records[name][i]).any()}
            if todo:
                read_window(wanted, todo, window, {name: records[name][i] for name in ("F16", *todo)})
                np.savez(kept, windows=windows, **records)
            if line:
                line(i + 1, count)
        if line:
            line.close()
    return {name: found[:count] for name, found in records.items()}


def read(text: str) -> str:
    if text != "code":
        return Path(text).read_text(encoding="utf-8")
    library = Path(sysconfig.get_paths()["stdlib"])
    return "\n".join((library / file).read_text(encoding="utf-8") for file in CODE)


def load(kept: Path, windows: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The windows, and what is there of an earlier run. The longer of the two runs begins with the other."""
    if not kept.exists():
        return windows, {}
    with np.load(kept) as file:
        records = {name: file[name] for name in file.files}
    before = records.pop("windows")
    both = min(len(before), len(windows))
    if not np.array_equal(before[:both], windows[:both]):
        raise SystemExit(f"{kept} is of other tokens; remove it")
    more = np.full((len(windows) - both, WINDOW - 1, 3), np.nan, np.float32)
    longer = np.concatenate([before, windows[both:]])
    return longer, {name: np.concatenate([found, more]) for name, found in records.items()}


def read_window(
    wanted: Any, models: Mapping[str, Any], window: np.ndarray, out: Mapping[str, np.ndarray]
) -> None:
    """Fills out[name] [positions, 3] for every model and for F16."""
    ids, targets = window[:-1], window[1:]
    places = [slice(start, start + ROWS) for start in range(0, len(ids), ROWS)]

    def forward(model: Any) -> np.ndarray:
        model.truncate(0)
        return np.asarray(model.forward(ids, logits=len(ids)))

    def score(name: str, logits: np.ndarray) -> None:
        parts = each(lambda i: scores(p[i], chances[i], logits[places[i]], targets[places[i]]), range(len(p)))
        out[name][:] = np.concatenate(parts)

    expected = forward(wanted)
    p = each(lambda at: log_softmax(expected[at]), places)
    chances = each(np.exp, p)
    score("F16", expected)
    for name, model in models.items():
        score(name, forward(model))


def scores(p: np.ndarray, chance: np.ndarray, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """[T, 3]: KL, same likeliest token, −ln p of `targets` [T]. p and chance: of the reference, [T, V]."""
    q = log_softmax(logits)
    loss = -q[np.arange(len(q)), targets]
    same = p.argmax(-1) == q.argmax(-1)
    return np.stack([np.einsum("tv,tv->t", chance, p - q), same, loss], -1)


# ------------------------------------------------------------------------------------------------ tables
def reference(records: Mapping[str, np.ndarray]) -> float:
    return float(np.exp(records["F16"][..., 2].mean(dtype=np.float64)))


def summary(model: str, bits: tuple[float, float], records: Mapping[str, np.ndarray]) -> Row:
    kl, same, losses = (records[model][..., i].astype(np.float64).reshape(-1) for i in range(3))
    perplexity = float(np.exp(losses.mean()))
    return Row(
        model, *bits, perplexity, perplexity / reference(records), float(kl.mean()),
        float(kl.std() / np.sqrt(len(kl))), float(np.median(kl)), float(np.quantile(kl, 0.99)),
        float(same.mean()), len(kl),
    )  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    head = ["model", "bits per weight (body / file)", "perplexity", "× F16", "KL mean", "±", "median", "p99"]
    cells = [
        [
            row.model, f"{row.bits_body:.2f} / {row.bits_file:.2f}", f"{row.perplexity:.3f}",
            f"{row.ratio:.4f}", f"{row.kl:.5f}", f"{row.kl_error:.5f}", f"{row.kl_median:.5f}",
            f"{row.kl_p99:.4f}", f"{100 * row.top1:.2f} %",
        ]
        for row in sorted(rows, key=lambda row: row.bits_file)
    ]  # fmt: skip
    return markdown([*head, "same top token"], cells, left=2)


if __name__ == "__main__":
    main()
