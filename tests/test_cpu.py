"""Which kernels a processor gets, with the objections to better ones, and which cores the threads stay on."""

from __future__ import annotations

import dataclasses
import os
import sys
from itertools import pairwise

import numpy as np
import pytest

from flatlm.kernels_arm import cpu, ops, team
from flatlm.kernels_arm.cpu import BY_NAME, TIERS, choose
from flatlm.kernels_arm.library import Library
from flatlm.kernels_arm.team import Cores, Team, fast_cores

PI4 = frozenset({"asimd"})
PI5 = PI4 | {"atomics", "asimddp"}
GRAVITON3 = PI5 | {"i8mm", "bf16", "sve"}
HASWELL = BY_NAME["avx2"].needs | {"sse4_2"}


@pytest.fixture(autouse=True)
def not_forced(monkeypatch):
    monkeypatch.delenv("FLATLM_CPU", raising=False)


@pytest.mark.parametrize(
    ("have", "on", "name"),
    [
        (PI4, "aarch64", "neon"),
        (PI5, "aarch64", "dotprod"),
        (GRAVITON3, "aarch64", "i8mm"),
        (HASWELL, "x86_64", "avx2"),
        (HASWELL | BY_NAME["avx512vnni"].needs, "x86_64", "avx512vnni"),
    ],
)
def test_a_processor_gets_its_best_tier(have, on, name):
    assert choose(have=have, on=on).tier is BY_NAME[name]


def test_dotprod_without_the_atomics_the_compiler_uses_is_not_enough():
    assert choose(have=PI4 | {"asimddp"}, on="aarch64").tier is BY_NAME["neon"]


def test_every_better_tier_has_its_objection():
    assert choose(have=PI4, on="aarch64").objections == (
        "i8mm: the processor lacks asimddp, atomics, i8mm",
        "dotprod: the processor lacks asimddp, atomics",
    )


def test_a_lower_tier_can_be_forced(monkeypatch):
    monkeypatch.setenv("FLATLM_CPU", "neon")
    choice = choose(have=GRAVITON3, on="aarch64")
    assert choice.tier is BY_NAME["neon"]
    assert choice.objections == (
        "i8mm: FLATLM_CPU=neon asks for neon",
        "dotprod: FLATLM_CPU=neon asks for neon",
    )


@pytest.mark.parametrize(
    ("forced", "message"),
    [
        ("dotprod", "FLATLM_CPU=dotprod is refused (dotprod: the processor lacks asimddp, atomics)"),
        ("avx2", "FLATLM_CPU=avx2 is refused (avx2: for x86_64, this is aarch64)"),
        ("sse2", "FLATLM_CPU=sse2: no such tier"),
    ],
)
def test_a_tier_that_cannot_run_is_refused_and_what_can_is_named(forced, message):
    choice = choose(forced, have=PI4, on="aarch64")
    assert choice.tier is None
    assert choice.objections == (f"{message}; this processor runs neon",)


def test_an_unknown_machine_has_no_kernels():
    assert choose(have=frozenset(), on="riscv64") == cpu.Choice(None, ("no kernels for riscv64",))


def test_a_processor_below_every_tier_says_what_it_lacks():
    choice = choose(have=frozenset({"sse2"}), on="x86_64")
    assert choice.tier is None
    assert [text.partition(":")[0] for text in choice.objections] == ["avx512vnni", "avx2"]


def test_tiers_stand_best_first():
    for better, worse in pairwise(TIERS):
        assert better.machine != worse.machine or better.needs > worse.needs or worse.name == "neon"


def test_a_32_bit_python_on_a_64_bit_kernel_gets_no_kernels(monkeypatch):
    monkeypatch.setattr(cpu.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(sys, "maxsize", 2**31 - 1)
    assert cpu.machine() == "aarch64 (32-bit Python)"


@pytest.mark.parametrize(
    ("reported", "name"), [("arm64", "aarch64"), ("AMD64", "x86_64"), ("x86_64", "x86_64")]
)
def test_every_spelling_of_a_machine_is_known(reported, name, monkeypatch):
    monkeypatch.setattr(cpu.platform, "machine", lambda: reported)
    assert cpu.machine() == name


def test_features_are_what_all_listed_processors_share(monkeypatch):
    text = "processor: 0\nflags\t\t: sse2 avx2 fma\n\nprocessor: 1\nflags\t\t: sse2 avx2\n"
    monkeypatch.setattr(cpu.Path, "read_text", lambda path: text)
    assert cpu._cpuinfo_features() == {"sse2", "avx2"}


# --------------------------------------------------------------------------------------------- which cores
PIXEL = {0: 250, 1: 250, 2: 250, 3: 250, 4: 620, 5: 620, 6: 1024, 7: 1024}
SNAPDRAGON = {0: 340, 1: 340, 2: 340, 3: 740, 4: 740, 5: 740, 6: 740, 7: 1024}


@pytest.fixture
def phone(monkeypatch):
    """A function that gives this machine other cores: {core: capacity}."""

    def become(capacities: dict[int, int | None]) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda thread: set(capacities), raising=False)
        monkeypatch.setattr(team, "_capacity", capacities.__getitem__)

    return become


@pytest.mark.parametrize(("cores", "fast"), [(PIXEL, {6, 7}), (SNAPDRAGON, {3, 4, 5, 6, 7})])
def test_threads_stay_on_cores_of_at_least_70_percent_of_the_top_capacity(cores, fast, phone):
    phone(cores)
    assert (fast_cores().threads, fast_cores().pinned) == (len(fast), fast)


def test_the_reason_names_the_cores_and_what_the_others_lack(phone):
    phone(SNAPDRAGON)
    assert fast_cores().why == (
        "cores 3-7 of 0-7: the top capacity is 1024, the slower ones have 340 at most"
    )


def test_only_cores_this_process_may_use_count(phone):
    phone({core: PIXEL[core] for core in (0, 1, 2, 3, 4, 5)})  # as Android leaves an app in the background
    assert fast_cores().pinned == {4, 5}


@pytest.mark.parametrize("cores", [dict.fromkeys(range(4), 1024), dict.fromkeys(range(4)), PIXEL | {7: None}])
def test_without_a_difference_that_the_system_tells_nothing_is_pinned(cores, phone):
    phone(cores)
    assert (fast_cores().threads, fast_cores().pinned) == (len(cores), frozenset())


def test_a_mac_starts_as_many_threads_as_it_has_performance_cores(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(team, "_performance_cores", lambda: 4)
    assert fast_cores() == Cores(4, frozenset(), "performance cores")


def test_spans_are_short():
    assert team.ranges({7, 0, 1, 2, 5}) == "0-2, 5, 7"


pins = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2, reason="nothing to choose from"
)


@pins
def test_every_thread_of_a_team_is_pinned_while_it_lives_and_the_callers_is_given_back(monkeypatch):
    everywhere = frozenset(os.sched_getaffinity(0))
    core = frozenset({max(everywhere)})
    seen: dict[int, frozenset[int]] = {}

    def look(thread: int) -> int:
        seen[thread] = frozenset(os.sched_getaffinity(0))
        return -1

    monkeypatch.setattr(team, "fast_cores", lambda: Cores(2, core, "a test"))
    entries = dict.fromkeys((field.name for field in dataclasses.fields(Library)), lambda *_: 0)
    entries |= {"step": lambda _: look(0), "serve": lambda _, thread, __: look(thread)}
    library = Library(**{**entries, "tier": TIERS[0], "origin": "a test", "keep": None})
    plan = np.zeros((1, ops.FIELDS), np.int64), np.zeros(8, np.int64)
    pair = Team(library, *plan, scratch=0, threads=2)
    pair.step()
    pair.close()
    assert seen == {0: core, 1: core}
    assert os.sched_getaffinity(0) == everywhere
    crowd = Team(library, *plan, scratch=0, threads=3)  # more than there are fast cores: anywhere
    crowd.step()
    crowd.close()
    assert seen == dict.fromkeys(range(3), everywhere)


@pins
def test_a_mask_that_the_system_refuses_changes_nothing():
    absent = frozenset({1023})
    before, after = team.pin(absent)
    assert before == after == os.sched_getaffinity(0)


@pins
def test_doctors_trial_pins_a_thread_of_its_own(monkeypatch):
    everywhere = frozenset(os.sched_getaffinity(0))
    monkeypatch.setattr(team, "fast_cores", lambda: Cores(1, frozenset({min(everywhere)}), "a test"))
    assert team.describe() == {"threads": "1: a test", "pinned": f"to {min(everywhere)}, as read back"}
    assert os.sched_getaffinity(0) == everywhere
