"""The hidden folder beside the target in which an export works, `.NAME.export`, and when it goes away."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flatlm.runtime.errors import ResourceError, UsageError

ARTIFACT, JOURNAL = "artifact", "journal"
_FULL = {  # what a disk says that takes no more
    errno.ENOSPC: "is full",
    errno.EDQUOT: "is full for this user",
    errno.EFBIG: "takes no file this large",
}


@contextmanager
def workplace(out: Path, say: Callable[[str], None]) -> Iterator[Path]:
    """On the same disk as `out`, with an empty folder `artifact`; `journal` is whatever an export before
    left.

    All of it goes at the end. After an error or an interrupt the journal stays, if a state was saved.
    """
    place = out.parent / f".{out.name}.export"
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write beside {out}: {error.strerror}") from error
    with _alone(place, out):
        shutil.rmtree(place / ARTIFACT, ignore_errors=True)
        try:
            (place / ARTIFACT).mkdir()
            yield place
        except BaseException as error:
            kept = _clear(place)
            if kept:
                stopped = "stopped by an error" if isinstance(error, Exception) else "interrupted"
                say(f"{stopped}; the same command goes on from here (what is done is kept in {place})")
            if isinstance(error, OSError) and error.errno in _FULL:
                rest = "make room" if kept else "nothing of the export was kept"
                raise ResourceError(f"the disk of {out.parent} {_FULL[error.errno]}; {rest}") from error
            raise
        shutil.rmtree(place, ignore_errors=True)


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
    with (place / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(
                f"another export is writing {out}; wait for it, or choose another folder"
            ) from error
        yield
