"""The hidden folder beside the target in which an export works, `.NAME.export`, and when it goes away.

Its name can be guessed, and the folder beside it may be one in which others write. So it is taken only where
it is this user's and nobody else can write in it, and nothing is opened through a link.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flatlm.kernels_arm.files import foreign
from flatlm.runtime.errors import ResourceError, UsageError, full_disk

ARTIFACT, JOURNAL, LOCK = "artifact", "journal", "lock"


@contextmanager
def workplace(out: Path, say: Callable[[str], None]) -> Iterator[Path]:
    """On the same disk as `out`, with an empty folder `artifact`; `journal` is whatever an export before
    left.

    All of it goes at the end. After an error or an interrupt the journal stays, if a state was saved.
    Raises UsageError where the folder cannot be made, is another user's or could be written by one.
    """
    place = out.parent / f".{out.name}.export"
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write beside {out}: {error.strerror}") from error
    claim(place)
    with _alone(place, out):
        _claim_contents(place)
        shutil.rmtree(place / ARTIFACT, ignore_errors=True)
        try:
            (place / ARTIFACT).mkdir()
            yield place
        except BaseException as error:
            kept = _clear(place)
            if kept:
                stopped = "stopped by an error" if isinstance(error, Exception) else "interrupted"
                say(f"{stopped}; the same command goes on from here (what is done is kept in {place})")
            if isinstance(error, OSError) and (full := full_disk(error)):
                rest = "make room" if kept else "nothing of the export was kept"
                raise ResourceError(f"the disk of {out.parent} {full}; {rest}") from error
            raise
        shutil.rmtree(place, ignore_errors=True)


def claim(folder: Path) -> None:
    """UsageError unless `folder` is a folder itself, no link, that only this user and root can write."""
    facts = folder.lstat()
    if stat.S_ISLNK(facts.st_mode):
        fault = f"is a link, to {os.readlink(folder)}"
    elif not stat.S_ISDIR(facts.st_mode):
        fault = "is no folder"
    elif not (fault := foreign(facts) or ""):
        return
    raise UsageError(
        f"{folder}, in which flatlm works, {fault}: nothing was touched. Remove it, or choose a folder in "
        "which only you write"
    )


def _claim_contents(place: Path) -> None:
    """UsageError where something in it leads out of it, or is a journal of somebody else."""
    for path in place.iterdir():
        owner = path.lstat().st_uid
        if path.is_symlink() or (os.name != "nt" and owner not in (0, os.geteuid())):
            what = "a link" if path.is_symlink() else f"of another user (uid {owner})"
            raise UsageError(f"{path} is {what}: nothing was touched. Remove {place}")


def _clear(place: Path) -> bool:
    """Removes what no later export can use, and says whether anything is left."""
    shutil.rmtree(place / ARTIFACT, ignore_errors=True)
    if any((place / JOURNAL).glob("*.npz")):
        for part in (place / JOURNAL).glob("*.part"):
            part.unlink(missing_ok=True)
        return True
    shutil.rmtree(place, ignore_errors=True)
    return False


@contextmanager
def _alone(place: Path, out: Path) -> Iterator[None]:
    """Two exports would take each other's files. A process that dies lets go of its lock."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    try:
        lock = os.open(place / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise UsageError(f"{place / LOCK} cannot be opened ({error.strerror}): remove {place}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(
                f"another export is writing {out}; wait for it, or choose another folder"
            ) from error
        yield
    finally:
        os.close(lock)
