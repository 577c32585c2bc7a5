"""A model that is served: under which name, with which options, and whether it is open just now.

What is opened, closed and computed is done on the engine's thread; names, counts and the tokenizer of an open
model may be read from any.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from flatlm import __version__
from flatlm.runtime.errors import UsageError
from flatlm.runtime.format.artifact import Manifest, read_manifest
from flatlm.runtime.generation.prefix_files import PrefixFiles
from flatlm.runtime.generation.prefixes import Prefixes, Saving
from flatlm.runtime.memory import give_back
from flatlm.runtime.options import BackendOptions, DraftOptions, SamplingOptions
from flatlm.runtime.server.tickets import Order

if TYPE_CHECKING:
    from flatlm.runtime.generation.answer import Answer
    from flatlm.runtime.generation.scheduler import Scheduler
    from flatlm.runtime.llm import LLM

QUIET_SECONDS = 2.0  # after which prefixes are written down and memory is given back: more may come before
LOG = logging.getLogger("flatlm.server")
CHUNK_SECONDS = 0.5  # that a chunk of a prompt may take: a cancelled one and all who write wait for it


@dataclass(frozen=True)
class Opening:
    """How models are opened, and what a request that says nothing gets."""

    backend: BackendOptions = field(default_factory=BackendOptions)
    draft: DraftOptions = field(default_factory=DraftOptions)
    sampling: SamplingOptions = field(default_factory=lambda: SamplingOptions(n=-1))
    keep_seconds: float = -1  # that an idle model stays open, -1: always
    cache_bytes: int = 0  # for prefixes without a slot, in memory
    cache_folder: Path | None = None  # and on disk
    disk_bytes: int = 500 << 20


def host_of(path: Path, name: str | None, opening: Opening) -> Host:
    """The artifact in the folder `path`, by its own name where none is given. Raises ArtifactError."""

    def make() -> LLM:
        from flatlm.runtime.llm import LLM

        return LLM(path, opening.backend, opening.draft)

    about = read_manifest(path)
    return Host(name or about.name or path.name, about, opening, make, path)


class Host:
    """A model by the name it is served under. `make` opens it."""

    def __init__(
        self, name: str, about: Manifest, opening: Opening, make: Callable[[], LLM], path: Path = Path()
    ) -> None:
        self.name, self.about, self.opening, self.path = name, about, opening, path
        self._make = make
        self.created = int(time.time())
        self.llm: LLM | None = None
        self.orders: list[Order] = []  # that are not ended
        self.held = 0  # requests that are read and will be orders
        self.counts: Counter[str] = Counter()  # since the start: answers, tokens, seconds
        self.used = time.monotonic()  # when it had something to do last
        self.keep_seconds = opening.keep_seconds
        self.load_seconds = 0.0
        self._files: PrefixFiles | None = None
        self._kept = True  # nothing came since prefixes were written down
        self.failure: str | None = None  # why it could not be opened last

    @property
    def bytes(self) -> int:
        """Of its files."""
        return sum(entry.size for entry in self.about.files.values())

    @property
    def digest(self) -> str:
        """Hexadecimal sha256 of what its files are."""
        text = "".join(f"{name}:{entry.sha256}\n" for name, entry in sorted(self.about.files.items()))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def running(self) -> int:
        """Answers that are read or written."""
        llm = self.llm
        return 0 if llm is None else len(llm.scheduler.running)

    @property
    def waiting(self) -> int:
        """Answers that wait for a slot."""
        return max(0, sum(len(order.tickets) for order in self.orders) - self.running)

    @property
    def loaded(self) -> bool:
        return self.llm is not None

    @property
    def busy(self) -> bool:
        """Whether answers wait or run."""
        return self.llm is not None and self.llm.scheduler.count > 0

    @property
    def idle(self) -> bool:
        """Whether nobody asks for anything, nor is about to."""
        return not (self.busy or self.orders or self.held)

    @property
    def slots(self) -> int:
        return self.opening.backend.batch

    @property
    def opened(self) -> LLM:
        """The open model."""
        if self.llm is None:
            raise UsageError(f"the model {self.name!r} is not loaded")
        return self.llm

    @property
    def scheduler(self) -> Scheduler:
        return self.opened.scheduler

    def open(self) -> None:
        """Load it."""
        started = time.monotonic()
        try:
            self.llm = self._make()
        except Exception as error:
            self.failure = str(error)
            raise
        self.failure = None
        self._shelve(self.llm)
        self.scheduler.chunk.within(CHUNK_SECONDS)
        self.used, self.load_seconds = time.monotonic(), time.monotonic() - started
        self.counts["loads"] += 1

    def close(self) -> None:
        """Free its memory; the file stays in the page cache."""
        if self.llm is not None:
            self.keep_prefixes()
            self.llm.close()
            self.llm = None
        if self._files is not None:
            self._files.close()
            self._files = None

    def _shelve(self, llm: LLM) -> None:
        """Have a shelf for prefixes, where the backend can put them there."""
        opening, backend = self.opening, llm.backend
        if not isinstance(backend, Saving) or not (opening.cache_bytes or opening.cache_folder):
            return
        if opening.cache_folder is not None:
            key = f"{__version__} {self.digest} {backend.name} {opening.backend.device}"
            self._files = PrefixFiles(opening.cache_folder, key, opening.disk_bytes)
        llm.scheduler.slots.prefixes = Prefixes(backend, opening.cache_bytes, self._files)

    def keep_prefixes(self) -> None:
        """What slots hold is written down, where there is a folder for it."""
        if self._files is not None and not self._kept:
            self.scheduler.slots.keep_all()
        self._kept = True

    def cancel(self, order: Order) -> None:
        """End what has not ended of it; from any thread."""
        llm = self.llm
        for ticket in order.tickets:
            if llm is not None and ticket.answer is not None and not ticket.answer.ended:
                llm.scheduler.cancel(ticket.answer)

    def left(self, order: Order) -> None:
        """All answers of an order have ended."""
        if order not in self.orders:
            return
        self.orders.remove(order)
        self.used, self._kept = time.monotonic(), False
        for ticket in order.tickets:
            if ticket.answer is not None:
                self._count(ticket.answer)

    def _count(self, answer: Answer) -> None:
        timings = answer.timings
        self.counts["answers"] += 1
        self.counts[f"ended_{answer.reason}"] += 1
        read = min(answer.sequence.read, timings.prompt_tokens)  # less where it was cancelled
        self.counts["prompt_tokens"] += max(0, read - timings.reused_tokens)
        self.counts["reused_tokens"] += timings.reused_tokens
        self.counts["generated_tokens"] += timings.generated_tokens
        self.counts["prompt_us"] += int(1e6 * timings.prefill_seconds)
        self.counts["generated_us"] += int(1e6 * timings.decode_seconds)
        if answer.reason != "cancelled":
            LOG.info(
                "%s: read %d of %d tokens (%d held), wrote %d at %.1f a second",
                *(self.name, max(0, read - timings.reused_tokens), timings.prompt_tokens),
                *(timings.reused_tokens, timings.generated_tokens, timings.decode_rate),
            )
        if timings.drafting is not None:
            self.counts["drafted_tokens"] += timings.drafting.drafted
            self.counts["accepted_tokens"] += timings.drafting.accepted

    def until_closed(self) -> float | None:
        """Seconds until an idle model is to be closed; None: it stays, or is closed."""
        if self.llm is None or self.keep_seconds < 0 or not self.idle:
            return None
        return self.used + self.keep_seconds - time.monotonic()

    def until_rest(self) -> float | None:
        """Seconds until there is something to do for an idle model; None: there is not."""
        times = [] if (closed := self.until_closed()) is None else [closed]
        if self.llm is not None and not self._kept and self.idle:
            times.append(self.used + QUIET_SECONDS - time.monotonic())
        return min(times, default=None)

    def rest(self) -> None:
        """Do what is due where it was idle for long enough."""
        left = self.until_rest()
        if left is None or left > 0:
            return
        if not self._kept:
            self.keep_prefixes()
            give_back()  # what many answers of different lengths took, in pieces
        if (closed := self.until_closed()) is not None and closed <= 0:
            self.close()
