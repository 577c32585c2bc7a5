"""The model types that can be exported, by what their files say of themselves.

Each file of export/archs begins with the models it is for, a colon, and what is peculiar to them.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

from flatlm.export.registry import architectures
from flatlm.export.sources.gguf_archs import ARCHITECTURES

# What the weights of published models were exported and measured of; all others are known by random ones.
REAL = {
    "llama": "SmolLM2-135M-Instruct",
    "qwen2": "Qwen2.5-Coder 0.5B and 1.5B Instruct",
}
TESTED = (
    "Of each type, on random checkpoints: the float graph's logits are those of a specification written "
    "apart (tests/spec), which equals transformers 5.24 where that knows the type; the exported model gives "
    "the same bits in numpy, onnxruntime and flatlm's own kernels; a GGUF file with the header that "
    "llama.cpp's converter writes gives the same constants."
)
_FOLDER = Path(__file__).parent / "archs"


@dataclass(frozen=True, slots=True)
class ModelType:
    """A model type: the models it is for, what is peculiar to them, its names in GGUF files."""

    model_type: str
    models: str
    shape: str
    gguf: tuple[str, ...]
    weights: str  # published ones that were tried, "" where there were none


def model_types() -> list[ModelType]:
    """All of them, by name."""
    return [_model_type(name) for name in architectures()]


def _model_type(name: str) -> ModelType:
    text = ast.get_docstring(ast.parse((_FOLDER / f"{name}.py").read_text(encoding="utf-8"))) or ""
    models, _, shape = " ".join(text.partition("\n\n")[0].split()).partition(": ")
    files = [gguf for gguf, one in ARCHITECTURES.items() if name in one.model_types]
    return ModelType(name, models, shape.rstrip("."), tuple(files), REAL.get(name, ""))


def markdown() -> str:
    """The table of docs/export.md."""
    head = "| `model_type` | models | in GGUF files |\n| --- | --- | --- |\n"
    rows = ((one, ", ".join(f"`{name}`" for name in one.gguf)) for one in model_types())
    return head + "".join(f"| `{one.model_type}` | {one.models} | {gguf} |\n" for one, gguf in rows)
