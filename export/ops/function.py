"""What export must know of a function of docs/format.md: its parts, of which an absent one does not apply.

A part is given the node and not only its name: attributes and inputs it may have are the function's matter.

Legend: B windows, T tokens of a window, k inputs of a layer, S draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from flatlm.runtime.format.graph import Graph, Node

Env = dict[str, np.ndarray]  # values by name, for one chunk of windows
Operation = Callable[..., tuple[np.ndarray, ...]]  # the inputs that are not constants → the outputs


@dataclass(frozen=True, slots=True)
class Channels:
    """Elements of a value [..., width], one for each input channel of a layer."""

    value: str  # its name
    index: np.ndarray  # int64 [k]; channels with the same index share an element
    width: int
    power: int = 1  # p where an element times s is the layer's channel times s^p, for s > 0


@dataclass(frozen=True, slots=True)
class Function:
    """One function, for whoever runs, differentiates, writes or quantizes a graph."""

    name: str

    # Its constants are read once: graph, node → the call in float32, for calibration; off by rounding only
    operation: Callable[[Graph, Node], Operation]

    # graph, node, values, gradients [S, …] of its outputs → those of its first inputs
    backward: Callable[..., tuple[np.ndarray, ...]] | None = None

    # What the call means in standard operators: an ONNX function's text after its name. Equal texts are one
    # function in the file. None: a standard operator itself.
    body: Callable[[Node], str] | None = None
    file_inputs: tuple[str, ...] = ()  # that a call in a file has beyond a Graph's, at the end

    # inputs[1] is W: y = x · Wᵀ + b, or rows of W by id, or y = x · W[e]ᵀ + b[e] of chosen experts
    matrix: Literal["linear", "table", "experts", ""] = ""
    parameters: Callable[[Graph, Node], int] | None = None  # in the constants, without scales and biases

    # How a scale folds through it. Multiplies each output channel by its factor [width], in the constants:
    scale: Callable[[Graph, Node, np.ndarray], None] | None = None
    # Where some of its output channels may be scaled instead: elements of an input that they are linear in,
    # or a power of; None where this node's are neither
    origin: Callable[[Graph, Node, Channels], Channels | None] | None = None
    # Output channels, of so many → the input channels they are made of, each of its own: so they may be
    # repeated and put in another order
    rows: Callable[[Node, np.ndarray, int], np.ndarray] | None = None
    # The ranges of its first input's channels, so many in all, that were layers of their own
    parts: Callable[[Node, int], list[slice]] | None = None
    # A factor of the recipe's `wide_channels`, for layers that read what it makes. Of the KL that 8-bit
    # activations cause in SmolLM2-135M, 83 % comes from the inputs of `down`, which no norm bounds, with a
    # quarter of the weights. Weighted by work, the factors average about 1.
    wide: float = 1.0

    over_int8: Callable[[Node], Node] | None = None  # the same call over an int8 K/V cache
