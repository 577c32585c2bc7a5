"""Two runs of the same items, paired: what changed, and whether that can be chance."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from flatlm.runtime.errors import UsageError
from flatlm.runtime.evaluation.intervals import mcnemar, paired_difference
from flatlm.runtime.evaluation.run_file import Run

SAME = ("task", "file_sha256")  # settings without which items do not pair


@dataclass(frozen=True)
class Paired:
    """The items of both runs by who is right. `difference` is B minus A, with a 95 % interval."""

    n: int
    both: int
    only_a: int
    only_b: int
    neither: int
    difference: float
    low: float
    high: float
    p: float  # McNemar's exact test, two-sided


def matched(a: Run, b: Run) -> tuple[Run, Run]:
    """Both runs with the items they have in common, in the order of `a`.

    Raises UsageError where they are of different tasks or files, or have no item in common.
    """
    for name in SAME:
        if a.settings.get(name) != b.settings.get(name):
            raise UsageError(f"the runs differ in {name}: {a.settings.get(name)}, {b.settings.get(name)}")
    in_b = {record["id"]: record for record in b.records}
    records = [record for record in a.records if record["id"] in in_b]
    if not records:
        raise UsageError("the runs have no item in common")
    if ("answer" in records[0]) != ("answer" in in_b[records[0]["id"]]):
        raise UsageError("one run has answers that were read, the other programs that ran: they do not pair")
    return replace(a, records=records), replace(b, records=[in_b[record["id"]] for record in records])


def pair(a: Run, b: Run, by: str = "right") -> Paired:
    """Compare two `matched` runs by the field `by` of their records."""
    cases = [(one[by], other[by]) for one, other in zip(a.records, b.records, strict=True)]
    both, only_a, only_b = (cases.count(case) for case in ((True, True), (True, False), (False, True)))
    neither = len(cases) - both - only_a - only_b
    difference, low, high = paired_difference(both, only_a, only_b, neither)
    return Paired(len(cases), both, only_a, only_b, neither, difference, low, high, mcnemar(only_a, only_b))


def paired_text(paired: Paired) -> str:
    """One line for people."""
    return (
        f"B − A {100 * paired.difference:+.1f} points (95 % interval {100 * paired.low:+.1f} … "
        f"{100 * paired.high:+.1f}), McNemar p {paired.p:.4g}; right in both {paired.both}, only A "
        f"{paired.only_a}, only B {paired.only_b}, neither {paired.neither}"
    )


def differing(a: Run, b: Run) -> dict[str, tuple[Any, Any]]:
    """The settings in which the runs differ."""
    names = dict.fromkeys([*a.settings, *b.settings])
    both = {name: (a.settings.get(name), b.settings.get(name)) for name in names}
    return {name: values for name, values in both.items() if values[0] != values[1]}
