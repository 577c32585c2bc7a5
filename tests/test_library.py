"""Finding the kernels: what is mapped, what is refused by its bytes, what is said when nothing is left."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from flatlm.kernels_arm import cpu, library, linker
from flatlm.kernels_arm.cpu import BY_NAME

MACHINES = {"x86_64": 62, "aarch64": 183}
TIER = BY_NAME["avx2"]


def elf(path, machine: str = "x86_64", sealed: bool = True):
    """A file with an ELF header for the machine and nothing of use behind it."""
    header = bytearray(b"\x7fELF\x02\x01\x01" + bytes(200))
    header[18:20] = MACHINES[machine].to_bytes(2, "little")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(header))
    if sealed:
        linker.seal(path)
    return path


@pytest.fixture
def places(tmp_path, monkeypatch):
    """An x86 machine with AVX2, no Numba, and empty folders for shipped and for cached libraries."""
    monkeypatch.delenv("FLATLM_CPU", raising=False)
    monkeypatch.setattr(cpu, "machine", lambda: "x86_64")
    monkeypatch.setattr(cpu, "features", lambda: TIER.needs)
    monkeypatch.setattr(library, "prebuilt_folder", lambda: tmp_path / "native")
    monkeypatch.setattr(library.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("FLATLM_CACHE", str(tmp_path / "cache"))
    name = f"{library.library_name(TIER)}.so"
    return SimpleNamespace(native=tmp_path / "native" / name, cache=tmp_path / "cache" / name)


@pytest.fixture
def mapped(monkeypatch):
    """The files that were opened, in order; opening always succeeds."""
    paths = []
    monkeypatch.setattr(library, "_open", lambda path, tier, origin: paths.append(path) or origin)
    return paths


def test_a_shipped_library_is_preferred_to_a_cached_one(places, mapped):
    elf(places.native), elf(places.cache)
    assert library.load(TIER) == "prebuilt"
    assert mapped == [places.native]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes().replace(b"ELF\x02", b"ELF\x01")),
        lambda path: path.write_bytes(b""),
        lambda path: elf(path, "aarch64"),
        lambda path: elf(path, sealed=False),
    ],
    ids=["truncated", "altered", "empty", "another architecture", "no digest"],
)
def test_a_bad_library_is_never_mapped_and_the_next_one_is(spoil, places, mapped):
    spoil(elf(places.native))
    elf(places.cache)
    assert library.load(TIER) == "cache"
    assert mapped == [places.cache]


def test_when_nothing_is_left_every_reason_is_told(places, mapped):
    elf(places.native, "aarch64")
    elf(places.cache).write_bytes(places.cache.read_bytes()[:100])
    with pytest.raises(library.KernelsUnavailable) as caught:
        library.load(TIER)
    assert mapped == []
    for reason in ("is for aarch64, this is x86_64", "is damaged", "numba is not installed"):
        assert reason in str(caught.value)


def test_a_library_that_the_system_refuses_is_a_reason_too(places):
    elf(places.native)
    with pytest.raises(library.KernelsUnavailable, match=rf"{places.native}: .+; numba is not installed"):
        library.load(TIER)


def test_a_library_of_other_sources_is_named(places):
    elf(places.native.with_name(f"{places.native.stem[:-16]}{'0' * 16}.so"))
    with pytest.raises(library.KernelsUnavailable, match="was built from other sources"):
        library.load(TIER)


def test_kernels_above_the_processor_are_refused_though_their_library_is_there(places, mapped):
    better = BY_NAME["avx512vnni"]
    elf(places.native.with_name(f"{library.library_name(better)}.so"))
    with pytest.raises(library.KernelsUnavailable, match=r"avx512vnni: the processor lacks .*avx512_vnni"):
        library.load(better)
    assert mapped == []


def test_a_cache_that_cannot_be_written_is_a_reason(places, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FLATLM_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(library, "_no_compiler", lambda: None)
    with pytest.raises(library.KernelsUnavailable, match="file"):
        library.load(TIER)


def test_a_mach_o_file_is_known_by_its_processor(tmp_path):
    path = tmp_path / "kernels.so"
    path.write_bytes(b"\xcf\xfa\xed\xfe" + (0x0100000C).to_bytes(4, "little") + bytes(100))
    assert linker.fault(path, "aarch64") is None
    assert linker.fault(path, "x86_64") == "is for aarch64, this is x86_64"


def test_what_is_no_library_is_called_so(tmp_path):
    path = tmp_path / "kernels.so"
    path.write_text("not found")
    assert linker.fault(path, "x86_64") == "is not a library"


def test_the_description_tells_where_the_kernels_come_from(places):
    assert "numba is not installed" in library.describe()["library"]
    elf(places.cache)
    assert library.describe()["library"] == f"cache: {places.cache}"
    assert library.describe()["kernels"] == "avx2: VPMADDUBSW on 256 bits"


@pytest.mark.parametrize(
    ("platform", "environment", "name"),
    [("linux", {}, "linux"), ("darwin", {}, "macos"), ("linux", {"ANDROID_ROOT": "/system"}, "android")],
)
def test_termux_and_macos_are_told_from_linux(platform, environment, name, monkeypatch):
    monkeypatch.setattr(library.sys, "platform", platform)
    monkeypatch.setattr(library.os, "environ", environment)
    assert library.platform_name() == name


def test_the_sources_of_the_hash_are_all_that_is_compiled():
    """What a source imports from its own folder is a source: an edit of it must rename the library."""
    for name in library.SOURCES:
        text = (library.HERE / f"{name}.py").read_text(encoding="utf-8")
        imported = re.findall(r"^from [.](\w+) import", text, re.MULTILINE)
        for names in re.findall(r"^from [.] import (.+)$", text, re.MULTILINE):
            imported += names.split(", ")
        assert set(imported) <= set(library.SOURCES), name
