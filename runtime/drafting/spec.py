"""What `--draft` may say, and the drafters it makes.

    off                          plain decoding
    auto[:MODEL[,MODEL…]]        Max-Gram and the models given, as far as they pay
    maxgram | maxgram-latest     Max-Gram alone, as far as it pays
    nested                       the 4-bit model inside a target exported with --nested, as far as it pays
    MODEL                        the folder of an exported model, alone, as far as it pays
    cascade:DRAFTER,…[:K[:L]]    the published static cascade, always on; the largest drafter first

MODEL may be `nested` everywhere. K is the upper triangle of the paper's matrix, rows separated by /, numbers
by commas ("13,10/10"), or the name of a published one; L is the lenience. Where K is left out, a published
one of that size is taken. A folder's name may have commas and colons: of several readings the one
with the longest folder that exists is meant.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from flatlm.runtime import ops
from flatlm.runtime.drafting import Drafter
from flatlm.runtime.drafting.auto import Auto
from flatlm.runtime.drafting.bigrams import load_bigrams
from flatlm.runtime.drafting.cascade import PUBLISHED, Cascade, Rows, row_lengths
from flatlm.runtime.drafting.forced import Forced
from flatlm.runtime.drafting.kept import Kept
from flatlm.runtime.drafting.maxgram import MaxGram
from flatlm.runtime.drafting.model import ModelDrafter, require_same_tokenizer
from flatlm.runtime.drafting.schedule import Schedule
from flatlm.runtime.drafting.short_head import ShortHead, with_short_head
from flatlm.runtime.drafting.speculator import Speculator
from flatlm.runtime.errors import UsageError
from flatlm.runtime.format.graph import Graph
from flatlm.runtime.format.nested import high_plane
from flatlm.runtime.names import find, resolve
from flatlm.runtime.options import BackendOptions, did_you_mean

if TYPE_CHECKING:
    from flatlm.runtime.backends import Backend
    from flatlm.runtime.format.artifact import Artifact
    from flatlm.runtime.text.tokenizer import Tokenizer

MAXGRAMS = {"maxgram": False, "maxgram-latest": True}  # name: whether the latest match counts
DEFAULT_K = {1: (((10,),), 1.0), 2: PUBLISHED["llama2"], 3: PUBLISHED["flan-t5"]}
NESTED = "nested"
MOST_K = 512  # tokens in a row of K: the rows of logits a backend gives at once


@dataclass(frozen=True)
class DraftSpec:
    """A parsed `--draft`. Without K the drafters go by measurement."""

    drafters: tuple[str, ...]  # names of MAXGRAMS, NESTED, or paths of artifacts
    K: Rows | None = None
    lenience: float = 1.0


def parse_draft(text: str) -> DraftSpec | None:
    """None for off. UsageError for what cannot be meant."""
    kind, mark, rest = text.partition(":")
    if text == "off":
        return None
    if kind == "auto":
        models = _names(text, rest) if mark else ()
        if any(name in MAXGRAMS for name in models):
            raise UsageError(f"--draft {text}: auto has maxgram already; name models only")
        return DraftSpec((MaxGram.name, *models))
    if kind == "cascade":
        return _cascade(text, rest)
    if _is_drafter(text):
        return DraftSpec((text,))
    known = ("auto", "off", *MAXGRAMS, NESTED, "cascade:…")
    raise UsageError(f"--draft {text!r} is no folder of an exported model{did_you_mean(text, known)}")


def build_speculator(
    spec: DraftSpec,
    artifact: Artifact,
    tokenizer: Tokenizer,
    open_model: Callable[[Artifact], Backend],
    kept: Kept | None = None,
) -> Speculator:
    """The drafters of `spec` for the target `artifact`; `open_model` runs another artifact beside it.
    What is `kept` is where costs and chances begin.

    Raises UsageError for a model with another tokenizer and for a target without a model inside, and what
    opening raises.
    """
    vocab = artifact.manifest.vocab_size
    leaves: list[Drafter] = []
    with ExitStack() as opened:
        for name in spec.drafters:
            if name in MAXGRAMS:
                leaves.append(MaxGram(load_bigrams(artifact.path, vocab), latest=MAXGRAMS[name]))
                continue
            model = inside(artifact) if name == NESTED else beside(artifact, name, tokenizer)
            backend = opened.enter_context(closing(open_model(model)))
            read = backend.graph if isinstance(backend, ShortHead) else model.graph
            size = _bytes_read(read) / _bytes_read(artifact.graph)
            costs = kept.costs(model, NESTED if name == NESTED else "drafter") if kept else None
            own = _own_name(name, {*MAXGRAMS, *(leaf.name for leaf in leaves)})
            leaves.append(ModelDrafter(own, backend, vocab, size=size, costs=costs))
        opened.pop_all()  # all went well: they stay open
    names = [leaf.name for leaf in leaves]
    return assemble(leaves, spec, schedule=kept.schedule(artifact, names) if kept else None)


def assemble(
    leaves: Sequence[Drafter],
    spec: DraftSpec,
    clock: Callable[[], float] = time.perf_counter,
    schedule: Schedule | None = None,
) -> Speculator:
    """A speculator of drafters that are open already, one for each of `spec.drafters`."""
    if spec.K is not None:
        return Speculator(Cascade(leaves, spec.K, spec.lenience), leaves, clock)
    return Speculator(Auto(schedule or Schedule(), [*leaves, Forced()]), leaves, clock)


def open_beside(target: Backend, model: Artifact, options: BackendOptions) -> Backend:
    """A model that drafts for `target`: on the same kind of backend, with as much context as both have,

    for as many sequences. Native ones get a short head.
    """
    from flatlm.runtime.backends.opening import open_named

    same = replace(options, ctx=min(target.context, model.manifest.context_length))
    if target.name != "native":
        return open_named(target.name, model, same)
    return with_short_head(model, lambda short: open_named(target.name, short, same))


def inside(target: Artifact) -> Artifact:
    """The target's own high plane: the same constants, so its weights are in memory once."""
    graph = high_plane(target.graph)
    if graph is target.graph:
        raise UsageError(f"{NESTED}: {target.path} has no model inside; --recipe nested makes one")
    return replace(target, graph=graph)


def beside(target: Artifact, name: str, tokenizer: Tokenizer) -> Artifact:
    """The artifact `name`, a folder or a name; UsageError where its tokens are not the target's."""
    from flatlm.runtime.format.artifact import open_artifact

    path = resolve(name)
    require_same_tokenizer(target.path, path, tokenizer)
    return open_artifact(path)


def _own_name(name: str, taken: Collection[str]) -> str:
    """The folder's name, else its path, else with a number: drafters are told apart by their names."""
    names = (Path(name).name, name, *(f"{name} ({i})" for i in range(2, len(taken) + 3)))
    return next(one for one in names if one not in taken)


def _bytes_read(graph: Graph) -> int:
    """By a token: its weights."""
    names = {name for node in graph.nodes if ops.is_product(node) for name in node.inputs}
    return sum(tensor.data.nbytes for name, tensor in graph.constants.items() if name in names)


def _is_drafter(name: str) -> bool:
    return name in MAXGRAMS or name == NESTED or find(name) is not None


def _names(text: str, part: str) -> tuple[str, ...]:
    names = _drafters(part)
    for name in part.split(",") if names is None else ():
        if not _is_drafter(name):
            known = (*MAXGRAMS, NESTED)
            raise UsageError(
                f"--draft {text}: {name!r} is no folder of an exported model{did_you_mean(name, known)}"
            )
    return names or ()


def _drafters(part: str) -> tuple[str, ...] | None:
    """The drafters of a list with commas, each as long as can be; None where one is no drafter."""
    words, names = part.split(","), []
    while words:
        ends = range(len(words), 0, -1)
        end = next((end for end in ends if _is_drafter(",".join(words[:end]))), None)
        if end is None:
            return None
        names.append(",".join(words[:end]))
        words = words[end:]
    return tuple(names)


def _fields(rest: str) -> list[str]:
    """DRAFTER,…[:K[:L]] in its parts: the drafters are as much of it as names drafters."""
    words = rest.split(":")
    heads = ((end, ":".join(words[:end])) for end in range(len(words), 0, -1))
    end, head = next(((end, head) for end, head in heads if _drafters(head)), (1, words[0]))
    return [head, *words[end:]]


def _cascade(text: str, rest: str) -> DraftSpec:
    parts = _fields(rest)
    if not rest or len(parts) > 3:
        raise UsageError(f"--draft {text}: write cascade:DRAFTER,…[:K[:L]], for example cascade:maxgram:5")
    drafters = _names(text, parts[0])
    if any(name in MAXGRAMS for name in drafters[:-1]):
        raise UsageError(f"--draft {text}: maxgram reviews nothing, so it must be the last drafter")
    if len(parts) > 1:
        K, lenience = PUBLISHED.get(parts[1]) or (_rows(text, parts[1]), 1.0)
    elif len(drafters) in DEFAULT_K:
        K, lenience = DEFAULT_K[len(drafters)]
    else:
        raise UsageError(f"--draft {text}: there is no published K for {len(drafters)} drafters: give one")
    if [len(row) for row in K] != row_lengths(len(drafters)):
        shape = "/".join(",".join("N" * length) for length in row_lengths(len(drafters)))
        raise UsageError(f"--draft {text}: K for {len(drafters)} drafters has the form {shape}")
    if len(parts) > 2:
        lenience = _number(text, parts[2])
    return DraftSpec(drafters, K, lenience)


def _rows(text: str, part: str) -> Rows:
    try:
        rows = tuple(tuple(int(number) for number in row.split(",")) for row in part.split("/"))
    except ValueError:
        raise UsageError(f"--draft {text}: K {part!r} is no matrix{did_you_mean(part, PUBLISHED)}") from None
    if any(min(row) < 0 or not 0 < sum(row) <= MOST_K for row in rows):
        raise UsageError(f"--draft {text}: a row of K must sum to 1 … {MOST_K}, without negative numbers")
    return rows


def _number(text: str, part: str) -> float:
    try:
        lenience = float(part)
    except ValueError:
        lenience = 0.0
    if not 1 <= lenience <= 1e6:
        raise UsageError(f"--draft {text}: the lenience {part!r} must be a number of 1 or more")
    return lenience
