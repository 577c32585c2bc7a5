"""A graph in the making: nodes, constants, and the checkpoint's weights that found their place.

A value is named after the node that makes it, a constant `<node>.weight` or `<node>.bias`.

Legend: n outputs, k inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from flatlm.export.constants import LazyConstants
from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.layers import Norm
from flatlm.export.names import EXPERT, Names
from flatlm.export.rope import Rotary
from flatlm.export.sources.source import Source
from flatlm.export.weights import Affine, Weight, beside, ones, together
from flatlm.runtime.format.graph import Attribute, Node, Tensor


@dataclass(frozen=True)
class Made:
    """What was made so far; all builders of a graph share it."""

    nodes: list[Node] = field(default_factory=list)
    constants: LazyConstants = field(default_factory=LazyConstants)
    placed: set[str] = field(default_factory=set)  # the checkpoint's weights that found their place
    tables: dict[str, Rotary] = field(default_factory=dict)  # by node
    states: list[tuple[str, str]] = field(default_factory=list)  # past and present of what is kept
    notes: list[str] = field(default_factory=list)  # lines for people


@dataclass(frozen=True)
class Builder:
    """Builds at the ends of a model, or a branch of a layer: then what it makes is named after that.

    layer, branch: 3 and "attention."; None and "" at the ends
    scale: what the output of a body or a norm is multiplied by, for its last weights to take in
    shift: the bias of the norm before a body, for its first weights to take in; None: there is none
    """

    source: Source
    config: DecoderConfig
    names: Names
    made: Made = field(default_factory=Made)
    layer: int | None = None
    branch: str = ""
    scale: float = 1.0
    shift: Weight | None = None

    def name(self, part: str) -> str:
        """Of a node: layers.3.attention.qkv."""
        return part if self.layer is None else f"layers.{self.layer}.{self.branch}{part}"

    def emit(
        self, op: str, part: str, inputs: Sequence[str], outputs: Sequence[str] = (), **attrs: Attribute
    ) -> str:
        """Appends a node; returns its first output, named as the node unless `outputs` says otherwise."""
        name = self.name(part)
        node = Node(op, tuple(inputs), tuple(outputs) or (name,), attrs, name)
        self.made.nodes.append(node)
        return node.outputs[0]

    def constant(self, name: str, weight: Weight) -> str:
        """Defines it; returns its name."""
        self.made.constants.define(name, weight.shape, weight.load)
        return name

    def weight(self, part: str, *shape: int, kind: str = ".weight") -> Weight:
        """A weight of the checkpoint, with what its name folds into it; `shape` as the config implies."""
        return self.stored(part, kind).require(shape)

    def stored(self, part: str, kind: str = ".weight") -> Weight:
        """The same, of whatever shape."""
        place, source = f"{self.branch}{part}", self.source
        kind = self.names.kind(place, self.layer, kind, source.gguf)
        found = self._stored(self.names.stored(place, self.layer, source.gguf), kind)
        for fold in self.names.folds(place, self.layer, source.gguf):
            found = fold(found, self.config)
        return found

    def _stored(self, name: str, kind: str) -> Weight:
        """As the checkpoint has it, which has found its place with that."""
        stored, source = f"{name}{kind}", self.source
        self.made.placed.add(stored)
        return Weight(source.shape(stored), lambda: source.read(stored), f"{source.name}: {stored}")

    def of_experts(self, part: str, experts: int, *shape: int, kind: str = ".weight") -> Weight:
        """A weight of all experts of a layer, [E, …]: stored as one, or one for each expert.

        A name of the second kind has the expert's number in the place of `EXPERT`; files that store all as
        one keep the word.
        """
        name = self.names.stored(f"{self.branch}{part}", self.layer, self.source.gguf)
        stored, whole = {*self.source.names()}, self.names.layer[f"{self.branch}{part}"].whole
        if whole and f"{name.replace(EXPERT, '0')}{kind}" not in stored and not self.source.gguf:
            b = replace(self, names=self.names.but(layer={f"{self.branch}{part}": whole}))
            return b.weight(part, experts, *shape, kind=kind)
        if EXPERT not in name or f"{name}{kind}" in stored:
            return self.weight(part, experts, *shape, kind=kind)
        return together(
            [self._stored(name.replace(EXPERT, str(e)), kind).require(shape) for e in range(experts)]
        )

    def affine(self, part: str, *shape: int, bias: bool = False) -> Affine:
        """A linear layer of the checkpoint, [n, k]."""
        found = self.weight(part, *shape)
        return Affine(found, self.weight(part, *shape[:1], kind=".bias") if bias else None)

    def linear(self, part: str, x: str, *parts: Affine, output: str = "", shared: str = "") -> str:
        """One matrix product for several linear layers on one input, outputs side by side.

        `output`: the value's name, where it is not the node's. `shared`: a constant that is the matrix.
        """
        whole, name = beside(parts), self.name(part)
        weight = shared or self.constant(f"{name}.weight", whole.weight)
        if whole.bias is not None:
            self.constant(f"{name}.bias", whole.bias)
        else:
            self.made.constants[f"{name}.bias"] = Tensor.of(np.zeros(whole.weight.shape[0], np.float32))
        return self.emit("Linear", part, (x, weight, f"{name}.bias"), (output,) if output else ())

    def norm(self, part: str, x: str, norm: Norm) -> tuple[str, Weight | None]:
        """A norm of the stream, its output times `scale`; the bias it has, for the readers to take in."""
        weight, shift = self.norm_weights(norm.place or part, norm)
        constant = self.constant(f"{self.name(part)}.weight", weight)
        options: dict[str, Attribute] = {"centered": 1} if norm.centered else {}
        options["epsilon"] = self.config.epsilon
        return self.emit("Norm", part, (x, constant), (), **options), shift

    def norm_weights(self, part: str, norm: Norm) -> tuple[Weight, Weight | None]:
        """Weight and bias of a norm of the stream, times `scale`."""
        width, scale = self.config.hidden_size, self.scale
        weight = self.weight(part, width) if norm.weighted else ones(width)
        if norm.plus_one and not self.source.gguf:  # whose converters have added it
            weight = weight.plus(1)
        weight = weight.scaled(scale)
        return weight, self.weight(part, width, kind=".bias").scaled(scale) if norm.bias else None

    def rotary(self, rotary: Rotary) -> tuple[str, str]:
        """position_ids → cos, sin [B, T, d/2]; one node for each table, before all others."""
        name, tables = rotary.name, self.made.tables
        constant, outputs = f"{name}.inverse_frequency", (f"{name}.cos", f"{name}.sin")
        if name not in tables:
            node = Node("RotaryTable", ("position_ids", constant), outputs, {}, name)
            self.made.nodes.insert(len(tables), node)
            self.made.constants[constant] = Tensor.of(rotary.frequency)
            tables[name] = rotary
            self.made.notes.extend([f"{self.source.name}: {rotary.note}"] if rotary.note else [])
        assert np.array_equal(tables[name].frequency, rotary.frequency), f"two tables are called {name}"
        return outputs

    def parts(self, part: str, x: str, sizes: Mapping[str, int]) -> tuple[str, ...]:
        """Columns of x side by side, as values of their own, by the last words of their names."""
        names = tuple(self.name(f"{part}.{word}") for word in sizes)
        self.emit("Parts", part, (x,), names, sizes=" ".join(map(str, sizes.values())))
        return names

    def fixed_state(self, kind: str) -> tuple[str, str]:
        """A state of the layer that does not grow with the positions: its input and its output."""
        names = f"past_{kind}.{self.layer}", f"present_{kind}.{self.layer}"
        self.made.states.append(names)
        return names

    def state(self, *parts: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What the layer keeps of the tokens before: its names as inputs of the graph, and as outputs."""
        past, present = (
            tuple(f"{name}.{self.layer}.{part}" for part in parts) for name in ("past_key_values", "present")
        )
        self.made.states.extend(zip(past, present, strict=True))
        return past, present
