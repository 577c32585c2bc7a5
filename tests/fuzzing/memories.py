"""The targets journal, kept files and run file: what flatlm itself wrote, and something else since."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from flatlm.export.journal import Journal
from flatlm.export.passes.bits import Variant
from flatlm.runtime.drafting.kept import Kept
from flatlm.runtime.drafting.schedule import Schedule
from flatlm.runtime.errors import FlatlmError
from flatlm.runtime.evaluation.run_file import MAGIC, RunFile
from tests.fuzzing.mutation import NUMBERS, Draw, byte_changes, json_bytes, json_changes
from tests.fuzzing.target import Case, Prepared, Target
from tests.test_drafting_kept import HOW, artifact
from tests.test_settings import RECORD, compared

SOME = st.integers(0, 2)
KEY, STATE = "key", "state.npz"


def quiet(_: str) -> None:
    """What a journal says is not asked for."""


def journal(folder: Path) -> Prepared:
    """The state of an export and the key it belongs to."""
    place = folder / "journal"
    state = (3, {"a": [Variant(4, 2.5, 0.1, 1e-300)], 4: None}, {"x": np.arange(6.0)}, np.float32(0.1))
    Journal.open(place, "k", quiet).save("state", state)
    content = (place / STATE).read_bytes()
    with np.load(place / STATE) as stored:
        tree, *arrays = (stored[name] for name in stored.files)

    trees = json_changes([json.loads(tree.tobytes())])

    @st.composite
    def states(draw: Draw) -> bytes:
        text = json.dumps(draw(trees)).encode()
        buffer = io.BytesIO()
        np.savez(buffer, np.frombuffer(text, np.uint8), *arrays)
        return buffer.getvalue()

    with zipfile.ZipFile(place / STATE) as stored:
        members = {name: stored.read(name) for name in stored.namelist()}
    changed = [byte_changes([one], within=128) | _shapes(one) for one in members.values()]

    @st.composite
    def zipped(draw: Draw) -> bytes:
        """One member's header or numbers changed, in a zip file whose checksums are right."""
        buffer, at = io.BytesIO(), draw(st.integers(0, len(members) - 1))
        with zipfile.ZipFile(buffer, "w") as file:
            for number, (name, one) in enumerate(members.items()):
                file.writestr(zipfile.ZipInfo(name), draw(changed[at]) if number == at else one)
        return buffer.getvalue()

    def run(case: Case) -> None:
        (place / STATE).write_bytes(content)
        (place / KEY).write_bytes(b"k")
        (place / case.name).write_bytes(case.content)
        opened = Journal.open(place, "k", quiet)
        opened.load("state")
        opened.save("state", state)
        assert opened.load("state") is not None

    cases = st.one_of(
        states().map(partial(Case, STATE)),
        zipped().map(partial(Case, STATE)),
        byte_changes([content]).map(partial(Case, STATE)),
        st.binary(max_size=4).map(partial(Case, KEY)),
    )
    return Prepared(cases, run)


def _shapes(member: bytes) -> st.SearchStrategy[bytes]:
    """An .npy member whose header tells another shape."""
    shape = re.search(rb"\(\d*,?\)", member)
    assert shape is not None
    others = [f"({a},)".encode() for a in NUMBERS] + [f"({a},{b})".encode() for a in NUMBERS for b in (0, 2)]
    return st.sampled_from([member.replace(shape[0], other) for other in others])


def drafted(schedule: Schedule) -> None:
    """What a process asks of a schedule, and what it learns."""
    if schedule.target:
        schedule.settle(0.02)
    schedule.spend(1, 0.02, 0.02, 1, 0.0)
    for rows in (1, 4, 2, 9):
        schedule.odds("m", 3, 0.5)
        schedule.best_length([0.9, 0.8, 0.1], rows=rows, each=0.001)
        schedule.note("m", 3, right=True)
        schedule.readings.begin()
        schedule.readings.read("m")
        schedule.readings.served("m")
        schedule.lengths.rest(3)
        schedule.lengths.add(20)
        schedule.spend(rows, 0.02, 0.03, 2, 0.001)
        schedule.may_draft()


def kept_files(folder: Path) -> Prepared:
    """The two files that drafting keeps of a model: costs of passes, and chances of guesses."""

    def process() -> None:
        kept = Kept(HOW, folder)
        drafted(kept.schedule(artifact(), ["m"]))
        kept.write()

    process()
    files = {path.name: path for path in folder.iterdir()}
    good = {name: path.read_bytes() for name, path in files.items()}
    named = {"costs.json" if b'"rows"' in content else "chances.json": name for name, content in good.items()}
    assert len(named) == 2

    def run(case: Case) -> None:
        for name, content in good.items():
            files[name].write_bytes(content)
        files[named[case.name]].write_bytes(case.content)
        process()
        process()

    kinds = [
        json_bytes([json.loads(good[name])]).map(partial(Case, kind)) for kind, name in sorted(named.items())
    ]
    return Prepared(st.one_of(*kinds), run)


def run_file(folder: Path) -> Prepared:
    """The lines of a run: compared with itself, and continued."""
    path = folder / "run.jsonl"
    head = {"task": "gsm8k", "seed": 1}
    records = [RECORD, {**RECORD, "id": "1", "right": False}]
    good = b"".join([MAGIC, *(line(one) for one in ({}, *records))]).replace(
        b"{}\n", json.dumps(head).encode() + b"}\n"
    )

    tops, others = json_changes([head]), [json_changes([one]) for one in records]

    @st.composite
    def lines(draw: Draw) -> bytes:
        changed = [one if draw(SOME) else draw(other) for one, other in zip(records, others, strict=True)]
        top = head if draw(SOME) else draw(tops)
        return MAGIC + json.dumps(top).encode() + b"}\n" + b"".join(map(line, changed))

    def run(case: Case) -> None:
        path.write_bytes(case.content)
        for read in (lambda: compared(path), lambda: _continued(path, head)):
            _refused(read)

    return Prepared(st.one_of(lines(), lines(), byte_changes([good])).map(partial(Case, "run.jsonl")), run)


def line(record: Any) -> bytes:
    return json.dumps(record).encode() + b"\n"


def _continued(path: Path, head: dict[str, Any]) -> None:
    with RunFile(path, head) as run:
        run.append({**RECORD, "id": "9"})


def _refused(read: Callable[[], object]) -> None:
    """Both readers are asked, whatever the first says."""
    with suppress(FlatlmError):
        read()


DRAFTING = "flatlm.runtime.drafting."
JOURNAL = Target("journal", ("flatlm.export.journal",), journal)
KEPT = Target(
    "kept files",
    tuple(DRAFTING + n for n in ("kept", "costs", "schedule", "readings", "lengths")),
    kept_files,
)
RUN_FILE = Target(
    "run file",
    ("flatlm.runtime.evaluation.run_file", "flatlm.runtime.evaluation.comparison", "flatlm.runtime.settings"),
    run_file,
)
