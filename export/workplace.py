"""The hidden folder beside the target in which an export works, `.NAME.export`, and when it goes away."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.errors import ResourceError, UsageError

ARTIFACT, JOURNAL = "artifact", "journal"


@contextmanager
def workplace(out: Path, say: Callable[[str], None]) -> Iterator[Path]:
    """On the same disk as `out`, with an empty folder `artifact`; `journal` is whatever an export before
    left.

    All of it goes at the end and after an error. Where an export is interrupted, its journal stays.
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
        except Exception as error:
            shutil.rmtree(place, ignore_errors=True)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ResourceError(
                    f"the disk of {out.parent} is full; nothing of the export was kept"
                ) from error
            raise
        except BaseException:
            shutil.rmtree(place / ARTIFACT, ignore_errors=True)
            say(f"interrupted; the same command goes on from here (what is done is kept in {place})")
            raise
        shutil.rmtree(place, ignore_errors=True)


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
