"""The verbs on the models' folder: list, rm, cp, and push to another machine."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from flatlm.runtime import models, names
from flatlm.runtime.commands.common import add_json, print_json, say
from flatlm.runtime.errors import BackendError, ResourceError, UsageError
from flatlm.runtime.format.artifact import read_manifest
from flatlm.runtime.format.describe import size_text, table

REMOTE = ".local/share/flatlm/models"  # of the other machine's user, where its flatlm looks for names
_HOST = re.compile(r"(?:[A-Za-z0-9_.-]+@)?[A-Za-z0-9][A-Za-z0-9_.-]*")
_REMOTE_PATH = re.compile(r"(?:~/)?[A-Za-z0-9_./+-]+")  # nothing that the other machine's shell would act on


def register_list(parser: argparse.ArgumentParser) -> None:
    """`flatlm list`."""
    parser.set_defaults(run=run_list)
    parser.description = f"The models that a verb takes by name, of the folder {names.folder()}."
    add_json(parser)


def run_list(args: argparse.Namespace) -> int:
    """Print a row a model, the last used first."""
    found = models.listed()
    if args.json:
        print_json({"folder": str(names.folder()), "models": [_facts(model) for model in found]})
        return 0
    rows = [("name", "size", "parameters", "recipe", "used")]
    for model in found:
        manifest = model.manifest
        facts = (
            ("?", "cannot be read") if manifest is None else (_count(manifest.parameters), manifest.recipe)
        )
        rows.append((model.name, size_text(model.size), *facts, ago(time.time() - model.used)))
    if found:
        print(table(rows))
    else:
        say(f"{names.folder()} holds no models yet: `flatlm run smollm2-135m-instruct` fetches one")
    return 0


def register_rm(parser: argparse.ArgumentParser) -> None:
    """`flatlm rm NAME…`."""
    parser.set_defaults(run=run_rm)
    parser.description = "Delete models of the models' folder. Folders elsewhere are left alone."
    parser.add_argument("names", nargs="+", metavar="NAME")


def run_rm(args: argparse.Namespace) -> int:
    """Delete one after the other; the first that is none ends it."""
    for name in args.names:
        size = models.remove(name)
        say(f"{name}: removed, {size_text(size)} free")
    return 0


def register_cp(parser: argparse.ArgumentParser) -> None:
    """`flatlm cp MODEL NAME`."""
    parser.set_defaults(run=run_cp)
    parser.description = "Copy a model, by name or path, into the models' folder under another name."
    parser.add_argument("source", metavar="MODEL")
    parser.add_argument("name", metavar="NAME")


def run_cp(args: argparse.Namespace) -> int:
    """Print the copy's folder."""
    source, target = names.resolve(args.source), names.place_of(args.name)
    if os.path.lexists(target):
        raise UsageError(f"there is a model {args.name} already: `flatlm rm {args.name}`, or another name")
    files = ["flatlm.json", *read_manifest(source).files]
    target.parent.mkdir(parents=True, exist_ok=True)
    half = Path(tempfile.mkdtemp(prefix=f".{args.name}.", dir=target.parent))
    try:
        for name in files:
            shutil.copy2(source / name, half / name)
        half.chmod(0o777 & ~_umask())
        os.replace(half, target)
    except OSError as error:
        raise ResourceError(f"{source} cannot be copied to {target}: {error.strerror}") from error
    finally:
        shutil.rmtree(half, ignore_errors=True)
    models.note_use(target, str(source))
    print(target)
    return 0


def register_push(parser: argparse.ArgumentParser) -> None:
    """`flatlm push MODEL USER@HOST[:PATH]`."""
    parser.set_defaults(run=run_push)
    parser.description = (
        "Copy a model to another machine by ssh, with rsync where both have it: started again, rsync sends "
        f"what is missing. PATH is the folder to make there, without it ~/{REMOTE}/NAME, which its flatlm "
        "knows by NAME."
    )
    parser.add_argument("model", metavar="MODEL", help="name or folder of an exported model")
    parser.add_argument("target", metavar="USER@HOST[:PATH]")


def run_push(args: argparse.Namespace) -> int:
    """Send the files; what the programs say goes to the terminal. Print the command to run there."""
    source = names.resolve(args.model)
    files = ["flatlm.json", *read_manifest(source).files]
    host, path = _target(args.target, source.resolve().name)
    if shutil.which("ssh") is None:
        raise BackendError("push needs the program ssh, which is not installed (Debian: openssh-client)")
    _run(["ssh", "--", host, f"mkdir -p {path}"], host)
    if shutil.which("rsync") is not None and _has_rsync(host):
        command = ["rsync", "--times", "--partial", "--progress", "--"]
    elif shutil.which("scp") is not None:
        command = ["scp", "-p", "--"]
    else:
        raise BackendError("push needs rsync on both machines, or scp here: install one")
    _run([*command, *(str(source / name) for name in files), f"{host}:{path}/"], host)
    by_name = path.rpartition("/")[0] == REMOTE
    print(f"ssh {host} flatlm run {path.rpartition('/')[2] if by_name else path}")
    return 0


def _target(text: str, name: str) -> tuple[str, str]:
    """USER@HOST and the folder there. UsageError for what ssh or a shell could take for more than that."""
    host, mark, path = text.partition(":")
    if _HOST.fullmatch(host) is None:
        raise UsageError(f"push to {text!r}: it must be USER@HOST or USER@HOST:PATH")
    if not mark:
        if not names.is_name(name):
            raise UsageError(f"{name!r} is no name for a model: give USER@HOST:PATH")
        return host, f"{REMOTE}/{name}"
    if _REMOTE_PATH.fullmatch(path) is None or path.startswith("-"):
        raise UsageError(f"push to {text!r}: in PATH are letters, digits, . _ + - and /, no other characters")
    return host, path.removeprefix("~/").rstrip("/") or "/"


def _has_rsync(host: str) -> bool:
    return (
        subprocess.run(
            ["ssh", "--", host, "command -v rsync"], stdout=subprocess.DEVNULL, check=False
        ).returncode
        == 0
    )


def _run(command: list[str], host: str) -> None:
    """stdout of the program is talk: the result of a verb is its own."""
    done = subprocess.run(command, stdout=2, check=False)
    if done.returncode:
        raise BackendError(
            f"{command[0]} to {host} ended with status {done.returncode}; what arrived stays there"
        )


def _facts(model: models.Model) -> dict[str, object]:
    manifest = model.manifest
    facts = {"name": model.name, "path": str(model.path), "size": model.size, "used": model.used}
    more = {} if manifest is None else {"recipe": manifest.recipe, "parameters": manifest.parameters}
    return {**facts, **more, "origin": model.origin}


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.1f} B" if parameters >= 1e9 else f"{parameters / 1e6:.0f} M"


def ago(seconds: float) -> str:
    """A time in the past in words."""
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'s' * (count > 1)} ago"
    return "just now"


def _umask() -> int:
    now = os.umask(0o022)
    os.umask(now)
    return now
