"""flatlm info: what an artifact is."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from flatlm.runtime.commands.common import add_json, add_model, model_path, print_json
from flatlm.runtime.generation.published import TALK, in_words, published


def register(parser: argparse.ArgumentParser) -> None:
    """Add the verb's flags."""
    parser.set_defaults(run=run)
    parser.description = "Show an artifact's recipe, sizes and per-layer report."
    add_model(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the artifact's description; with --json the manifest."""
    from flatlm.runtime.format.artifact import open_artifact
    from flatlm.runtime.format.describe import describe
    from flatlm.runtime.memory import sequence_text
    from flatlm.runtime.reading import reading

    artifact = open_artifact(model_path(args))
    if args.json:
        print_json(asdict(artifact.manifest))
    else:
        more = {"memory of a sequence": sequence_text(artifact.graph), **_sampling(Path(artifact.path))}
        if (read := reading(artifact.graph)).experts:
            more["read for a token"] = str(read)
        print(describe(artifact, more))
    return 0


def _sampling(folder: Path) -> dict[str, str]:
    found = published(folder)
    if found is None:
        return {"sampling": f"none published; in a chat {in_words(TALK)}"}
    return {"sampling": f"{in_words(found)} (published with the model)"}
