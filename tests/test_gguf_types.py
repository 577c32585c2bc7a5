"""Every model type that GGUF files hold: a file gives the constants of the checkpoint that it was made of.

tests/gguf_headers.json holds what llama.cpp's converter (that of llama_cpp_python 0.3.36) made of the tiny
checkpoints of tests/tiny_checkpoints.py: metadata, and of which weight each tensor is, how changed. Files are
written of that here, so neither llama.cpp nor torch is needed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flatlm.export.archs import build_graph
from flatlm.export.sources import open_source
from flatlm.export.sources.gguf_archs import ARCHITECTURES
from tests.test_gguf import permute
from tests.tiny_checkpoints import tiny, tiny_config, tiny_weights

RECORDS = json.loads((Path(__file__).parent / "gguf_headers.json").read_text())
IDS = [f"{record['kind']}-{i}" for i, record in enumerate(RECORDS)]


def changed(weights: dict[str, np.ndarray], relation: list[Any], layer: str) -> np.ndarray | None:
    """The tensor that the converter makes; None where the layer has no such weight."""
    name, *how = relation
    if how[:1] == ["values"]:
        return np.array(how[1], np.float32)
    name = name.replace(".N.", f".{layer}.")
    if how[:1] == ["stacked"]:
        names = [name.replace(".E.", f".{expert}.") for expert in range(how[1])]
        return np.stack([weights[one] for one in names]) if names[0] in weights else None
    if how[:1] == ["experts"]:
        count = sum(name.replace(".E.", f".{e}.") in weights for e in range(100))
        found = [weights[name.replace(".E.", f".{e}.")] for e in range(count)]
        return np.stack(found) if found else None
    weight = weights.get(name)
    if weight is None or not how:
        return weight
    (kind, number), half = how, len(weight) // 2
    return {
        "by_part": lambda: weight.reshape(number, 3, -1).swapaxes(0, 1).reshape(weight.shape),
        "permuted": lambda: permute(weight, number),
        "plus": lambda: weight + np.float32(number),
        "half": lambda: weight[number * half : (number + 1) * half],
        "half of experts": lambda: np.split(weight, 2, axis=1)[number],
        "other of experts": lambda: weight[..., number::2].swapaxes(1, -1),
        "transposed experts": lambda: weight.swapaxes(1, 2),
    }[kind]().copy()


def written(path: Path, folder: Path, record: dict[str, Any]) -> Path:
    gguf = pytest.importorskip("gguf")
    config = tiny_config(record["kind"], **record["config"])
    weights, writer = tiny_weights(config), gguf.GGUFWriter(str(path), record["architecture"])
    for key, (value, kind) in record["metadata"].items():
        writer.add_key_value(key, value, gguf.GGUFValueType[kind])
    vocab = json.loads((folder / "tokenizer.json").read_text())["model"]
    tokens = sorted(vocab["vocab"], key=vocab["vocab"].get)
    tokens += [f"[PAD{i}]" for i in range(len(tokens), config["vocab_size"])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [5 if token.startswith("[PAD") else 1 for token in tokens[3:]])
    writer.add_token_merges([" ".join(merge) for merge in vocab["merges"]])
    layers = range(record["metadata"][f"{record['architecture']}.block_count"][0])
    for name, relation in record["tensors"].items():
        for layer in map(str, layers) if ".N." in name else ("",):
            tensor = changed(weights, relation, layer)
            if tensor is not None:
                squeezed = tensor[:, 0] if tensor.ndim == 3 and tensor.shape[1] == 1 else tensor
                writer.add_tensor(name.replace(".N.", f".{layer}."), squeezed)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("record", RECORDS, ids=IDS)
def test_a_gguf_file_gives_the_graph_of_the_checkpoint_it_was_made_of(tmp_path, record):
    folder = tiny(tmp_path / "hf", record["kind"], **record["config"])
    expected = build_graph(open_source(str(folder)))
    actual = build_graph(open_source(str(written(tmp_path / "tiny.gguf", folder, record))))
    assert actual.nodes == expected.nodes
    assert set(actual.constants) == set(expected.constants)
    for name in expected.constants:
        np.testing.assert_array_equal(actual.array(name), expected.array(name), err_msg=name)
    assert {**actual.metadata, "architecture": ""} == {**expected.metadata, "architecture": ""}


def test_every_architecture_of_gguf_files_is_here():
    assert {record["architecture"] for record in RECORDS} == set(ARCHITECTURES)


def test_what_the_header_refuses_is_refused_before_the_tokenizer_is_read(tmp_path, monkeypatch):
    from flatlm.export.sources import gguf_file
    from flatlm.runtime.errors import UnsupportedError

    record = next(record for record in RECORDS if record["architecture"] == "qwen2")
    record = {**record, "metadata": {**record["metadata"], "qwen2.expert_count": [8, "UINT32"]}}
    path = written(tmp_path / "tiny.gguf", tiny(tmp_path / "hf", record["kind"], **record["config"]), record)
    monkeypatch.setattr(
        gguf_file, "tokenizer_files", lambda *arguments: pytest.fail("the tokenizer was read")
    )
    with pytest.raises(UnsupportedError, match="num_experts 8"):
        open_source(str(path))
