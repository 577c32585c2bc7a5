"""flatlm verify: hash every file of an artifact again."""

from __future__ import annotations

import argparse

from flatlm.runtime.commands.common import add_json, add_model, model_path, print_json
from flatlm.runtime.progress import ProgressLine


def register(parser: argparse.ArgumentParser) -> None:
    """Add the verb's flags."""
    parser.set_defaults(run=run)
    parser.description = "Hash every file of an artifact and compare with its manifest."
    add_model(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print ok, or raise the artifact's error."""
    from flatlm.runtime.format.artifact import verify_artifact

    path = model_path(args)
    with ProgressLine("hashing", "bytes") as progress:
        verify_artifact(path, progress)
    if args.json:
        print_json({"path": str(path), "ok": True})
    else:
        print(f"{path}: every file is as it was exported")
    return 0
