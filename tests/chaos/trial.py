"""One trial: a command meets a fault, perhaps several in a row, and is then left alone to finish."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from flatlm.runtime.errors import FlatlmError
from tests.chaos.faults import FAULTS, Fault, moment
from tests.chaos.victims import Victim, environment

LONGEST = 120  # seconds, of a command that takes a few
LINGERING = 3  # seconds that what a dead process began may still take to end


@dataclass(frozen=True)
class Ended:
    """How a process ended: its status, what it said, and what it began that runs on."""

    status: int
    stdout: bytes
    stderr: str
    left: list[str]


class Trials:
    """Trials of one victim, each in a folder of its own beside the inputs."""

    def __init__(self, victim: Victim, folder: Path) -> None:
        self._victim, self._inputs = victim, folder / "inputs"
        self._inputs.mkdir(parents=True)
        victim.prepare(self._inputs)
        self._folder, self._count = folder, 0
        with self._trial() as trial:
            started = time.monotonic()
            ended = self._run(trial, None, 0, 0)
            self.seconds = time.monotonic() - started  # of the command, left alone
            assert ended.status == 0, ended.stderr
            self._right = victim.made(trial, ended.stdout)
            assert self._right is not None
            self._names = self._left(trial)

    def try_faults(self, faults: list[str], random: Random) -> tuple[list[str], int]:
        """One after the other until the command ends well, or none: what was wrong, how many struck."""
        wrong, struck = list[str](), 0
        with self._trial() as trial:
            for name in faults:
                fault = FAULTS[name]
                ended = self._run(trial, fault, moment(random, self.seconds), random.random())
                struck += ended.status != 0
                wrong += [f"{name}: {what}" for what in self._judged(trial, fault, ended)]
                _forgiven(trial)
                if ended.status == 0:
                    return wrong, struck
            ended = self._run(trial, None, 0, 0)
            if ended.status != 0:
                wrong.append(f"after {faults} the command ends with {ended.status}: {ended.stderr[-300:]}")
            elif self._victim.made(trial, ended.stdout) != self._right:
                wrong.append(f"after {faults} the command makes something else than without")
            if strange := self._left(trial) - self._names:
                wrong.append(f"after {faults} and the command there is also {sorted(strange)}")
        return wrong, struck

    def _judged(self, trial: Path, fault: Fault, ended: Ended) -> Iterator[str]:
        if ended.status not in (0, *fault.statuses):
            yield f"status {ended.status}: {ended.stderr[-300:]}"
        if "Traceback" in ended.stderr or "bug of flatlm" in ended.stderr:
            yield ended.stderr[-400:]
        if ended.left:
            yield f"runs on: {ended.left}"
        graceful = ended.status >= 0
        if graceful and (left := list((trial / "tmp").iterdir())):
            yield f"temporary files are left: {[path.name for path in left]}"
        try:
            made = self._victim.made(trial, ended.stdout)
        except (FlatlmError, AssertionError) as error:
            yield f"what is there is damaged: {error}"
            return
        if ended.status == 0 and made != self._right:
            yield "status 0, but not the right result"

    def _run(self, trial: Path, fault: Fault | None, after: float, share: float) -> Ended:
        """The command to its end; struck `after` seconds."""
        starve = fault.starve if fault else None
        with (
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as talk,
            tempfile.TemporaryFile() as said,
        ):
            said.write(self._victim.stdin)
            said.seek(0)
            process = subprocess.Popen(
                self._victim.command(self._inputs, trial), stdin=said, stdout=out, stderr=talk,
                env=environment(self._inputs, trial), start_new_session=True,
                preexec_fn=(lambda: starve(share)) if starve else None,
            )  # fmt: skip
            try:
                if fault and fault.strike:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(after)
                    if process.poll() is None:
                        fault.strike(process.pid, trial)
                process.wait(LONGEST)
            finally:
                process.kill()
            left = _lingering(process.pid)
            out.seek(0)
            talk.seek(0)
            return Ended(process.returncode, out.read(), talk.read().decode(errors="replace"), left)

    @contextlib.contextmanager
    def _trial(self) -> Iterator[Path]:
        self._count += 1
        trial = self._folder / f"trial{self._count}"
        trial.mkdir()
        try:
            yield trial
        finally:
            shutil.rmtree(trial, ignore_errors=True)

    @staticmethod
    def _left(trial: Path) -> set[str]:
        """What lies in the trial's folder, and in those for results and temporary files."""
        folders = [trial, trial / "tmp", trial / "models"]
        return {str(path.relative_to(trial)) for one in folders if one.is_dir() for path in one.iterdir()}


def _forgiven(trial: Path) -> None:
    """What was robbed or forbidden is as a user would put it right; a killed one's temporary files go."""
    trial.chmod(0o700)
    for folder in trial.glob("*"):
        if folder.is_dir():
            folder.chmod(0o700)
    for path in trial.glob("robbed-*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in (trial / "tmp").iterdir():
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


def _lingering(session: int) -> list[str]:
    """Command lines of processes of the session that do not end soon."""
    end = time.monotonic() + LINGERING
    while (left := _of_session(session)) and time.monotonic() < end:
        time.sleep(0.05)
    for pid in left:
        with contextlib.suppress(OSError):
            os.kill(pid, 9)
    return list(left.values())


def _of_session(session: int) -> dict[int, str]:
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")[:100]
    return found
