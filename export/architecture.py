"""What an architecture says of itself: a file of export/archs holds one `Architecture`.

ARCHITECTURE = Architecture(decoder, obeyed=words("attention_bias mlp_bias"))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.layers import Decoder
from flatlm.export.names import NAMES, Names
from flatlm.runtime.settings import Settings

SILU = {"silu": "silu", "swish": "silu"}  # hidden_act → the act of `Gated`
ACTS = {  # the same of models that do not keep to one
    **SILU,
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "relu_squared": "relu2",
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """How config.json and the checkpoint of a model type are read.

    decoder: config, and all that config.json holds → the model, as data
    obeyed: keys of config.json that `decoder` reads, beyond those of all decoders
    acts: values of hidden_act → acts of `Gated`
    keys: a key of all decoders → what this model type calls it
    defaults: of keys that are absent, where transformers takes others than flatlm
    names: of the weights
    layer_types: what may stand in layer_types
    rope_by_layer_type: whether types of layers may have rope parameters of their own
    interleaved: whether the pairs that turn lie side by side in the checkpoint
    only: keys of config.json with the one value that flatlm has
    as_new: keys and values of config.json, defaults included → as transformers 5 writes them
    """

    decoder: Callable[[DecoderConfig, Settings], Decoder]
    obeyed: frozenset[str] = frozenset()
    acts: Mapping[str, str] = field(default_factory=lambda: SILU)
    keys: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    names: Names = NAMES
    layer_types: frozenset[str] = frozenset({"full_attention", "sliding_attention"})
    rope_by_layer_type: bool = False
    interleaved: bool = False
    only: Mapping[str, Any] = field(default_factory=dict)
    as_new: Callable[[dict[str, Any]], dict[str, Any]] = dict

    def key(self, name: str) -> str:
        """What this model type calls a key of all decoders."""
        return self.keys.get(name, name)
