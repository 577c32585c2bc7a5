"""Finding the kernels: what is mapped, what is refused by its bytes, what is said when nothing is left."""

from __future__ import annotations

import ast
import os
from types import SimpleNamespace

import pytest

from flatlm.kernels_arm import cpu, library, linker, mapping
from flatlm.kernels_arm import places as places_module
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


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
OTHER = 12345


@as_root
@pytest.mark.parametrize("what", ["the file", "the folder"])
def test_a_library_of_another_user_is_never_mapped(places, mapped, what):
    path = elf(places.cache)
    os.chown(path if what == "the file" else path.parent, OTHER, OTHER)
    with pytest.raises(library.KernelsUnavailable, match=rf"belongs to another user \(uid {OTHER}\)"):
        library.load(TIER)
    assert mapped == []
    assert library.describe()["library"].startswith(library.NONE)


@pytest.mark.parametrize("what", ["the file", "the folder"])
@pytest.mark.parametrize("mode", [0o020, 0o002])
def test_a_library_that_others_can_write_is_never_mapped(places, mapped, what, mode):
    path = elf(places.cache)
    path = path if what == "the file" else path.parent
    path.chmod(path.stat().st_mode | mode)
    with pytest.raises(library.KernelsUnavailable, match="can be written by other users"):
        library.load(TIER)
    assert mapped == []


def test_a_shipped_library_is_as_trusted_as_the_program_beside_it(places, mapped):
    elf(places.native).chmod(0o777)
    assert library.load(TIER) == "prebuilt"


@as_root
def test_what_is_mapped_is_judged_itself(places):
    """Between the choice of a file and its opening another one can come."""
    path = elf(places.cache)
    os.chown(path, OTHER, OTHER)
    with pytest.raises(OSError, match="belongs to another user"):
        library._open(path, TIER, "cache")
    os.chown(path, 0, 0)
    path.write_bytes(b"\x7fELF" + bytes(300))
    with pytest.raises(OSError, match="is damaged"):
        library._open(path, TIER, "cache")


@pytest.fixture
def compiler(monkeypatch):
    """A Numba that is there, and the folders that were compiled into."""
    folders = []

    def build(tier, folder):
        places_module.make_ready(folder)
        folders.append(folder)
        return elf(folder / f"{library.library_name(tier)}.so")

    monkeypatch.setattr(library, "_no_compiler", lambda: None)
    monkeypatch.setattr(library.linker, "at_hand", lambda tier, system: True)
    monkeypatch.setattr(library, "build", build)
    return folders


@pytest.fixture
def homeless(monkeypatch, tmp_path):
    """A user that the system does not know, without HOME."""
    monkeypatch.delenv("FLATLM_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(places_module.Path, "home", raising_runtime_error)
    monkeypatch.setattr(places_module.tempfile, "gettempdir", lambda: str(tmp_path))
    return tmp_path / f"flatlm-{os.geteuid()}"


def raising_runtime_error():
    raise RuntimeError("Could not determine home directory.")


def test_a_user_without_a_home_uses_what_is_shipped(places, mapped, homeless):
    elf(places.native)
    assert library.load(TIER) == "prebuilt"
    assert library.describe()["library"] == f"prebuilt: {places.native}"
    assert not homeless.exists()


def test_for_a_user_without_a_home_kernels_are_compiled_once_into_a_private_folder(
    places, mapped, homeless, compiler
):
    assert f"into {homeless}" in library.describe()["library"]
    told = []
    assert library.load(TIER, told.append) == "compiled now"
    assert f"into {homeless}, as this user has no cache folder: FLATLM_CACHE" in told[0]
    assert homeless.stat().st_mode & 0o777 == 0o700
    assert library.load(TIER, told.append) == "temporary folder"
    assert library.describe()["library"].startswith(f"temporary folder: {homeless}")
    assert compiler == [homeless] and len(told) == 1


@as_root
def test_the_private_folder_of_somebody_else_is_not_taken(places, homeless, compiler):
    homeless.mkdir()
    os.chown(homeless, OTHER, OTHER)
    with pytest.raises(library.KernelsUnavailable, match=rf"another user \(uid {OTHER}\): set FLATLM_CACHE"):
        library.load(TIER)
    assert compiler == []


def test_a_home_that_cannot_be_written_is_none(places, mapped, homeless, compiler, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    (tmp_path / "file").touch()
    assert library.load(TIER) == "compiled now"
    assert compiler == [homeless]


def test_a_folder_of_our_own_is_taken_from_the_group(places, mapped, compiler, monkeypatch, tmp_path):
    monkeypatch.delenv("FLATLM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    elf(tmp_path / "flatlm" / places.cache.name)
    (tmp_path / "flatlm").chmod(0o775)
    assert library.load(TIER) == "compiled now"
    assert (tmp_path / "flatlm").stat().st_mode & 0o777 == 0o755
    assert library.load(TIER) == "cache"


def test_where_nothing_may_be_executed_nothing_is_compiled(places, mapped, compiler, monkeypatch):
    facts = SimpleNamespace(f_flag=os.ST_NOEXEC)
    monkeypatch.setattr(places_module.os, "statvfs", lambda path: facts)
    for _ in ("without a library", "with one"):
        with pytest.raises(
            library.KernelsUnavailable, match=r"nothing may be executed in .*: set FLATLM_CACHE"
        ):
            library.load(TIER)
        assert "set FLATLM_CACHE" in library.describe()["library"]
        assert library.describe()["library"].startswith(library.NONE)
        elf(places.cache)
    assert (compiler, mapped) == ([], [])


def test_an_object_needs_no_folder_in_which_anything_may_be_executed(places, mapped, monkeypatch):
    monkeypatch.setattr(places_module.os, "statvfs", lambda path: SimpleNamespace(f_flag=os.ST_NOEXEC))
    elf(places.cache.with_suffix(".o"))
    assert library.load(TIER) == "cache"


def test_what_the_system_refuses_to_map_is_not_compiled_again(places, compiler):
    elf(places.cache)
    with pytest.raises(
        library.KernelsUnavailable, match=rf"{places.cache}: .*; delete it to have it compiled"
    ):
        library.load(TIER)
    assert compiler == []


def test_what_killed_compilations_left_goes_when_it_is_old(tmp_path):
    old, new = (tmp_path / f"{places_module.HALF_MADE}{name}" for name in ("old", "new"))
    for folder in (old, new, tmp_path / "tmpfolder"):
        folder.mkdir()
        (folder / "kernels.o").touch()
    for folder in (old, tmp_path / "tmpfolder"):
        os.utime(folder, (0, 0))
    places_module.make_ready(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {new.name, "tmpfolder"}


@as_root
def test_what_compilations_of_others_left_stays(tmp_path):
    old = tmp_path / f"{places_module.HALF_MADE}old"
    old.mkdir()
    os.chown(old, OTHER, OTHER)
    os.utime(old, (0, 0))
    places_module.make_ready(tmp_path)
    assert old.is_dir()


@pytest.fixture
def real():
    """The path of the library that this machine maps."""
    tier = cpu.choose().tier
    assert tier
    library.load(tier)  # compiles it where it is missing
    path, _ = library._candidates(tier, [])[0]
    if path.suffix != ".so":
        pytest.skip("kernels cannot be linked here")
    return path


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="the system does not list open files")
def test_a_library_is_mapped_once_however_often_it_is_loaded(real):
    before = len(os.listdir("/proc/self/fd"))
    with real.open("rb") as file:
        first = mapping.load(file, real)
    with real.open("rb") as file:
        assert mapping.load(file, real) is first
    assert len(os.listdir("/proc/self/fd")) == before


def test_of_two_files_of_one_name_the_open_one_is_mapped_or_none(real, tmp_path, monkeypatch):
    path, other = tmp_path / "kernels.so", tmp_path / "other.so"
    for copy in (path, other):
        copy.write_bytes(real.read_bytes())
    with path.open("rb") as file:
        os.replace(other, path)
        if os.path.isdir("/proc/self/fd"):
            assert mapping.load(file, path) is not None
        monkeypatch.setattr(mapping, "_mapped", {})
        monkeypatch.setattr(mapping, "_map_open", lambda file: None)  # as on macOS
        with pytest.raises(OSError, match="was replaced while it was opened"):
            mapping.load(file, path)


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


def imported_here(tree: ast.AST) -> set[str]:
    """Modules of its own folder that a file imports, at its top or in a function."""
    names = set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            names |= {node.module} if node.module else {alias.name for alias in node.names}
    return names


def test_the_sources_of_the_hash_are_all_that_is_compiled():
    """What a source imports from its own folder is a source: an edit of it must rename the library."""
    needed, waiting = set[str](), ["aot"]
    while waiting:
        if (name := waiting.pop()) not in needed:
            needed.add(name)
            waiting += imported_here(ast.parse((library.HERE / f"{name}.py").read_text(encoding="utf-8")))
    assert set(library.sources()) == needed >= {"executor", "limits", "excess", "llvm", "simd", "reference"}


def test_an_edit_of_any_source_renames_the_library(monkeypatch):
    names = set()
    for edited in library.sources():
        texts = {name: text + b"#" * (name == edited) for name, text in library.sources().items()}
        monkeypatch.setattr(library, "sources", lambda texts=texts: texts)
        names.add(library.library_name(TIER))
        monkeypatch.undo()
    assert len(names) == len(library.sources())
