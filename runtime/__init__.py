"""flatlm's runtime: `from runtime import LLM`.

Names are resolved on first use, so that importing one module of the package loads only what it needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.errors import FlatlmError as FlatlmError
    from runtime.llm import LLM as LLM
    from runtime.llm import Completion as Completion
    from runtime.llm import Timings as Timings
    from runtime.options import SamplingOptions as SamplingOptions

_PUBLIC = {
    "LLM": "runtime.llm",
    "Completion": "runtime.llm",
    "Timings": "runtime.llm",
    "SamplingOptions": "runtime.options",
    "FlatlmError": "runtime.errors",
}

__all__ = ["LLM", "Completion", "FlatlmError", "SamplingOptions", "Timings"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
