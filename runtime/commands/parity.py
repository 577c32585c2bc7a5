"""flatlm parity: do all backends say the same?"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from flatlm.runtime.commands.common import add_json, add_model, model_path, print_json, say
from flatlm.runtime.errors import BackendError
from flatlm.runtime.measuring.parity import PROMPTS, Agreement, compare
from flatlm.runtime.options import BackendOptions, add_flags, check_fields, from_args, option
from flatlm.runtime.progress import ProgressLine

if TYPE_CHECKING:
    from flatlm.runtime.backends import Backend
    from flatlm.runtime.format.artifact import Artifact

ORDER = ("native", "numpy", "ort", "ort-file")  # the first one present writes the tokens
FAST = "ort --fast"  # its row: what --fast costs is reported and nothing is asked of it
# Share of positions at which ort must have all bits: sums in float64 take another order there, which a
# rounding to float32 shows about once in 10^8 values
ENOUGH = 0.999


@dataclass(frozen=True)
class ParityOptions:
    """How much is compared."""

    prompts: int = option(4, "--prompts", low=1, high=len(PROMPTS), help="built-in prompts")
    tokens: int = option(32, "--tokens", low=1, high=2**20, help="tokens written after each")

    def __post_init__(self) -> None:
        check_fields(self)


def register(parser: argparse.ArgumentParser) -> None:
    """Add the verb's flags."""
    parser.set_defaults(run=run)
    parser.description = (
        "The first backend present writes greedily, the others read the same tokens. The status is 1 where "
        f"two differ in a token, or ort's logits have all bits at less than {ENOUGH:.1%} of the positions. "
        "With --fast its row is added, of which nothing is asked."
    )
    add_model(parser)
    add_json(parser)
    add_flags(parser, ParityOptions)
    add_flags(parser, BackendOptions, without=("backend",))


def run(args: argparse.Namespace) -> int:
    """Print one row per backend compared."""
    from flatlm.runtime.format.artifact import open_artifact
    from flatlm.runtime.text.tokenizer import load_tokenizer

    options = from_args(args, ParityOptions)
    artifact = open_artifact(model_path(args))
    tokenizer = load_tokenizer(artifact.path)
    prompts = [tokenizer.encode(text) for text in PROMPTS[: options.prompts]]
    present, line = _present(artifact, from_args(args, BackendOptions)), ProgressLine("parity", "prompts")
    with present as backends, line as progress:
        rows = compare(backends, prompts, options.tokens, progress)
    good = all(passes(row) for row in rows)
    if args.json:
        print_json({"tokens": options.tokens, "agreement": [asdict(row) for row in rows], "ok": good})
    else:
        print(table(rows))
    return 0 if good else 1


def passes(row: Agreement) -> bool:
    """Whether `row` keeps its backend's promise: the same tokens, and from ort nearly always all bits."""
    if row.backend == FAST:
        return True
    exact = {row.backend, row.reference} == {"native", "numpy"}
    return row.top1_agreement == 1.0 and (exact or row.equal_bits >= ENOUGH)


def table(rows: list[Agreement]) -> str:
    """The rows as a Markdown table."""
    from flatlm.runtime.measuring.bench import markdown

    head = [
        "backend",
        "against",
        "positions",
        "top-1",
        "all bits",
        "same prompts",
        "first difference",
        "max logit Δ",
        "mean KL",
    ]
    return markdown([*head, "max KL", "s"], (_cells(row) for row in rows), left=2)


def _cells(row: Agreement) -> list[str]:
    first = row.first_difference
    return [
        row.backend,
        row.reference,
        str(row.positions),
        f"{100 * row.top1_agreement:.2f} %",
        f"{100 * row.equal_bits:.2f} %",
        f"{row.identical_prompts}/{row.prompts}",
        "none" if first is None else f"prompt {first[0]}, token {first[1]}",
        f"{row.max_logit_difference:.3g}",
        f"{row.mean_kl:.2e}",
        f"{row.max_kl:.2e}",
        f"{row.seconds:.1f}",
    ]


@contextmanager
def _present(artifact: Artifact, options: BackendOptions) -> Iterator[dict[str, Backend]]:
    """All backends that open, best first; says on stderr which do not and why."""
    from flatlm.runtime.backends.opening import open_named

    cpu = replace(options, device="cpu", fast=False)
    settings = dict.fromkeys(ORDER, cpu) | {"ort": replace(options, fast=False)}
    if options.fast:
        settings[FAST] = options
    with ExitStack() as stack:
        backends = {}
        for name, chosen in settings.items():
            try:
                backend = open_named(name.partition(" ")[0], artifact, chosen)
            except BackendError as error:
                say(f"flatlm: {name} is left out: {error}")
                continue
            stack.callback(backend.close)
            backends[name] = backend
        if len(backends) < 2:
            raise BackendError(
                f"only {', '.join(backends) or 'no backend'} opens here; parity compares at least two"
            )
        yield backends
