"""The architectures by name: each is a file of export/archs, looked up when it is asked for."""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path

from flatlm.export.architecture import Architecture
from flatlm.runtime.errors import SourceError, UnsupportedError
from flatlm.runtime.settings import Settings

_FOLDER = Path(__file__).parent / "archs"


def architectures() -> list[str]:
    """The model types that can be exported."""
    return sorted(path.stem for path in _FOLDER.glob("[a-z]*.py"))


def architecture(model_type: str) -> Architecture:
    """Of a model type that there is."""
    found: Architecture = importlib.import_module(f"flatlm.export.archs.{model_type}").ARCHITECTURE
    return found


def architecture_of(config: Settings, name: str) -> Architecture:
    """Of a model called `name`, by its config.json.

    Raises SourceError where there is no model_type, UnsupportedError where it is none that flatlm knows.
    """
    model_type = config.get("model_type", str)
    if not model_type:
        raise SourceError(f"{name}: config.json has no model_type, so the architecture is unknown")
    known = architectures()
    if model_type not in known:
        (near,) = difflib.get_close_matches(model_type, known, n=1, cutoff=0)
        raise UnsupportedError(
            f"{name}: architecture {model_type!r} is not supported; of the {len(known)} that flatlm knows "
            f"the nearest by name is {near!r} (flatlm models lists them)"
        )
    return architecture(model_type)
