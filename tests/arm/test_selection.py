"""Which kernels an AArch64 processor gets, and that it never gets more than it can run."""

from __future__ import annotations

import os

import pytest

from flatlm.kernels_arm import cpu, library
from flatlm.kernels_arm.cpu import BY_NAME

TIER_OF = {"cortex-a72": "neon", "cortex-a76": "dotprod", "max": "i8mm"}
AARCH64 = [tier for tier in cpu.TIERS if tier.machine == "aarch64"]
UNABLE = [tier for tier in AARCH64 if cpu.objection(tier)]
ABLE = [tier for tier in AARCH64 if not cpu.objection(tier)]


@pytest.mark.skipif("FLATLM_ARM_CPU" not in os.environ, reason="FLATLM_ARM_CPU does not say what is emulated")
def test_the_processor_gets_its_best_tier():
    assert cpu.choose().tier is BY_NAME[TIER_OF[os.environ["FLATLM_ARM_CPU"]]]


def test_the_library_is_the_one_that_was_shipped():
    assert library.load(ABLE[0]).origin == "prebuilt"
    assert library.describe()["library"].startswith("prebuilt: ")


@pytest.mark.parametrize("tier", ABLE, ids=lambda tier: tier.name)
def test_a_lower_tier_can_be_forced_and_loads(tier, monkeypatch):
    monkeypatch.setenv("FLATLM_CPU", tier.name)
    chosen = cpu.choose().tier
    assert chosen is tier
    assert library.load(chosen).tier is tier


@pytest.mark.parametrize("tier", UNABLE, ids=lambda tier: tier.name)
def test_a_higher_tier_is_refused_with_the_missing_instructions(tier, monkeypatch):
    monkeypatch.setenv("FLATLM_CPU", tier.name)
    choice = cpu.choose()
    assert choice.tier is None
    assert "is refused" in choice.objections[0]
    with pytest.raises(library.KernelsUnavailable, match=r"the processor lacks .*(asimddp|i8mm)"):
        library.load(tier)


@pytest.mark.parametrize("tier", [t for t in cpu.TIERS if t.machine == "x86_64"], ids=lambda tier: tier.name)
def test_kernels_of_another_architecture_are_refused(tier):
    with pytest.raises(library.KernelsUnavailable, match="for x86_64, this is aarch64"):
        library.load(tier)


def test_an_x86_library_under_an_arm_name_is_never_mapped(tmp_path, monkeypatch):
    (foreign,) = library.prebuilt_folder().glob("flatlm-linux-avx2-*.so")
    planted = tmp_path / f"{library.library_name(ABLE[0])}.so"
    planted.write_bytes(foreign.read_bytes())
    monkeypatch.setattr(library, "prebuilt_folder", lambda: tmp_path)
    monkeypatch.setenv("FLATLM_CACHE", str(tmp_path / "cache"))
    message = "is for x86_64, this is aarch64; numba is not installed"
    with pytest.raises(library.KernelsUnavailable, match=message):
        library.load(ABLE[0])
