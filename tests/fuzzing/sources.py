"""The targets gguf, safetensors and config: models from outside, up to the graph that is built of them."""

from __future__ import annotations

import json
import struct
from functools import partial
from pathlib import Path

from hypothesis import strategies as st

from flatlm.export.archs import build_graph
from flatlm.export.sources import open_source
from tests.fuzzing.mutation import Draw, byte_changes, field_changes, json_bytes, json_changes
from tests.fuzzing.target import Case, Prepared, Target, in_place
from tests.test_gguf import tiny_gguf
from tests.tiny_models import TinyShape, tiny_model

SMALL = TinyShape(vocab_size=260, hidden_size=8, intermediate_size=8, layers=1, heads=2, head_size=4)
GGUF, SAFETENSORS, INDEX = "model.gguf", "model.safetensors", "model.safetensors.index.json"
READERS = "flatlm.export.sources."
SIZES = {
    0: 1,
    1: 1,
    2: 2,
    3: 2,
    4: 4,
    5: 4,
    6: 4,
    7: 1,
    10: 8,
    11: 8,
    12: 8,
}  # bytes of GGUF's numbers, by kind
TEXT, LIST = 8, 9
LISTED = 4  # elements of a list that are fields of their own; the rest is one


def read_all(path: Path) -> None:
    """Open a source, build its graph and read every weight, as an export does first."""
    source = open_source(str(path))
    build_graph(source)
    for name in source.names():
        source.shape(name)
        source.read(name)


def gguf_fields(content: bytes) -> list[bytes]:
    """A GGUF file as its fields: header, keys, kinds, values, names, shapes, places; then the rest."""
    fields: list[bytes] = []
    at = 0

    def take(size: int) -> bytes:
        nonlocal at
        fields.append(content[at : at + size])
        at += size
        return fields[-1]

    def number(size: int) -> int:
        return int.from_bytes(take(size), "little")

    def value(kind: int) -> None:
        if kind == TEXT:
            take(number(8))
        elif kind == LIST:
            inner, count = number(4), number(8)
            for _ in range(min(count, LISTED)):
                value(inner)
            start = len(fields)
            for _ in range(count - LISTED):
                value(inner)
            fields[start:] = [b"".join(fields[start:])]
        else:
            take(SIZES[kind])

    take(4), take(4)
    tensors, keys = number(8), number(8)
    for _ in range(keys):
        take(number(8))
        value(number(4))
    for _ in range(tensors):
        take(number(8))
        for _ in range(number(4)):
            take(8)
        take(4), take(8)
    return [*(field for field in fields if field), content[at:]]


def gguf(folder: Path) -> Prepared:
    model = tiny_model(folder / "hf", **vars(SMALL))
    good = []
    for name, changes in {"a": {}, "b": {"stored": {"model.embed_tokens.weight": "F16"}}}.items():
        tiny_gguf(folder / f"{name}.gguf", model, SMALL, **changes)
        good.append((folder / f"{name}.gguf").read_bytes())
    fields = [gguf_fields(content) for content in good]
    assert [b"".join(one) for one in fields] == good

    def run(case: Case) -> object:
        return in_place(folder / case.name, case.content, lambda: read_all(folder / case.name))

    head = len(good[0]) - len(fields[0][-1])
    cases = st.one_of(field_changes(fields), field_changes(fields), byte_changes(good, within=head))
    return Prepared(cases.map(partial(Case, GGUF)), run)


def safetensors(folder: Path) -> Prepared:
    """The one file of a model: its header as JSON, the length before it, and the bytes behind it."""
    model = tiny_model(folder / "hf", **vars(SMALL))
    good = (model / SAFETENSORS).read_bytes()
    length = struct.unpack("<Q", good[:8])[0]
    header, values = json.loads(good[8 : 8 + length]), good[8 + length :]

    trees = json_changes([header])

    @st.composite
    def headers(draw: Draw) -> bytes:
        text = json.dumps(draw(trees)).encode()
        told = len(text) + draw(st.sampled_from((0, 0, 0, 0, 1, -1, 8, 2**62)))
        return struct.pack("<Q", told) + text + values

    cases = st.one_of(headers(), headers(), byte_changes([good], within=8 + length))
    return Prepared(
        cases.map(partial(Case, SAFETENSORS)),
        lambda case: in_place(model / case.name, case.content, lambda: read_all(model)),
    )


def config(folder: Path) -> Prepared:
    """config.json, the index of shards and the small files of a model folder."""
    model = tiny_model(folder / "hf", **vars(SMALL) | {"shards": 2})
    plain = json.loads((model / "config.json").read_text())
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling |= {"original_max_position_embeddings": 64}
    more = {
        "rope_scaling": scaling,
        "quantization_config": None,
        "sliding_window": 64,
        "use_sliding_window": False,
    }
    qwen = {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "rope_parameters": {"rope_type": "default"},
    }
    good = {
        "config.json": [plain, plain | more, plain | qwen],
        "special_tokens_map.json": [
            {"eos_token": {"content": "<|im_end|>", "lstrip": False}, "bos_token": "x"}
        ],
        **{
            name: [json.loads((model / name).read_text())]
            for name in ("generation_config.json", "tokenizer_config.json", INDEX)
        },
    }

    def run(case: Case) -> object:
        return in_place(model / case.name, case.content, lambda: read_all(model))

    kinds = [json_bytes(values).map(partial(Case, name)) for name, values in good.items()]
    return Prepared(st.one_of(kinds[0], kinds[0], kinds[0], *kinds), run)


GGUF_FILE = Target(
    "gguf",
    tuple(
        READERS + name
        for name in (
            "gguf_file",
            "gguf_header",
            "gguf_reader",
            "gguf_archs",
            "gguf_config",
            "gguf_tokenizer",
            "gguf_sentencepiece",
            "gguf_tensors",
        )
    ),
    gguf,
)
SAFETENSORS_FILE = Target(
    "safetensors", tuple(READERS + n for n in ("safetensors_file", "hf_folder")), safetensors
)
CONFIG = Target(
    "config",
    (
        "flatlm.export.config",
        "flatlm.export.config_keys",
        "flatlm.export.rope",
        READERS + "hf_folder",
        READERS + "small_files",
    ),
    config,
)
