"""Which kernels a processor gets: the table of tiers, FLATLM_CPU, and what the objections say."""

from __future__ import annotations

import sys
from itertools import pairwise

import pytest

from kernels_arm import cpu
from kernels_arm.cpu import BY_NAME, TIERS, choose

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
