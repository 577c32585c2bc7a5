"""flatlm: language models with FlattenQuant integer weights, on small ARM computers and through onnxruntime.

    from flatlm import LLM

The three packages of the repository, `kernels_arm ◄─ runtime ◄─ export`, are parts of this one; in a checkout
they are links to the folders at its top. Names are resolved on first use, so that importing one module loads
only what it needs; not even typing, for the command catches Ctrl-C only once this is read.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from flatlm.runtime.errors import FlatlmError as FlatlmError
    from flatlm.runtime.generation.answer import Completion as Completion
    from flatlm.runtime.generation.answer import Timings as Timings
    from flatlm.runtime.llm import LLM as LLM
    from flatlm.runtime.options import SamplingOptions as SamplingOptions

__version__ = "0.1.0"

_PUBLIC = {
    "LLM": "flatlm.runtime.llm",
    "Completion": "flatlm.runtime.generation.answer",
    "Timings": "flatlm.runtime.generation.answer",
    "SamplingOptions": "flatlm.runtime.options",
    "FlatlmError": "flatlm.runtime.errors",
}

__all__ = ["LLM", "Completion", "FlatlmError", "SamplingOptions", "Timings", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
