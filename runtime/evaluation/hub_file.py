"""Where a task's file is asked for, a file of a dataset on the Hugging Face hub will do.

    hub:OWNER/DATASET/PATH

Token, resuming and the offline cache are huggingface_hub's.
"""

from __future__ import annotations

from pathlib import Path

from flatlm.runtime.errors import UsageError, first_line

PREFIX = "hub:"


def local(name: str) -> Path:
    """The path `name`, or where the file of the hub lies once it is fetched.

    UsageError where the package, the network, the file or the right to read it is missing.
    """
    if not name.startswith(PREFIX):
        return Path(name)
    parts = name.removeprefix(PREFIX).split("/", 2)
    if len(parts) < 3 or not all(parts):
        raise UsageError(f"{name}: write hub:OWNER/DATASET/PATH, for example hub:someone/gsm8k/test.jsonl")
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise UsageError(
            f"{name} needs the package huggingface_hub: pip install huggingface_hub, or fetch the file and "
            "give its path"
        ) from error
    try:
        return Path(hf_hub_download("/".join(parts[:2]), parts[2], repo_type="dataset"))
    except Exception as error:  # the library's errors of network, cache and validation share no class
        raise UsageError(
            f"cannot fetch {name}: {first_line(error).rstrip('.')}. Check the name and the network; with the "
            "file at hand, give its path"
        ) from error
