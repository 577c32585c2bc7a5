"""A model on the Hugging Face hub. Token, resuming and the offline cache are huggingface_hub's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from flatlm.runtime.errors import SourceError, first_line

# `model*` leaves out copies in other layouts, such as Meta's consolidated.safetensors.
PATTERNS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "model*.safetensors",
    "model.safetensors.index.json",
)
_FETCHED = ".cache/huggingface"  # what huggingface_hub leaves in a folder that it fills
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def is_hub_id(name: str) -> bool:
    """`owner/model`."""
    return _HUB_ID.fullmatch(name) is not None


def fetch_files(repo_id: str, folder: Path, names: Sequence[str]) -> bool:
    """Fetches these files of the repository into `folder`; False where it has none of them.

    Raises SourceError as `download`.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise _missing(repo_id) from error
    try:
        snapshot_download(repo_id, allow_patterns=list(names), local_dir=folder)
    except Exception as error:  # the library's errors of network, cache and validation share no class
        raise _unreachable(repo_id, error) from error
    return any((folder / name).is_file() for name in names)


def download(repo_id: str, out_dir: Path | None = None) -> Path:
    """The model's folder: `out_dir`, or huggingface_hub's cache. Only the files that export reads.

    Raises SourceError where the package, the network, the model or the right to read it is missing, and
    where `out_dir` holds what was not fetched from the hub.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise _missing(repo_id) from error
    if out_dir and out_dir.is_dir() and any(out_dir.iterdir()) and not (out_dir / _FETCHED).is_dir():
        raise SourceError(
            f"{out_dir} holds other files, which {repo_id} could replace: move it away, or choose another "
            "folder"
        )
    try:
        return Path(snapshot_download(repo_id, allow_patterns=list(PATTERNS), local_dir=out_dir))
    except Exception as error:  # the library's errors of network, cache and validation share no class
        raise _unreachable(repo_id, error) from error


def _missing(repo_id: str) -> SourceError:
    return SourceError(f"fetching {repo_id} needs the package huggingface_hub: pip install 'flatlm[export]'")


def _unreachable(repo_id: str, error: Exception) -> SourceError:
    return SourceError(
        f"cannot fetch {repo_id} from the hub: {first_line(error)}\n"
        "Check the name and the network; a gated model needs `hf auth login`; "
        "with the files at hand, give their folder"
    )
