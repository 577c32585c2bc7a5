"""Files of a GGUF model: parts of a split one, either byte order, and lists longer than the file."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from flatlm.export.sources import open_source
from flatlm.runtime.errors import SourceError, UnsupportedError
from tests.test_gguf import doubled, opened, tiny_gguf
from tests.tiny_models import TinyShape, tiny_model, tiny_weights


def test_all_parts_of_a_split_gguf_are_read_whichever_is_given(tmp_path):
    tiny_gguf(tmp_path / "tiny.gguf", tiny_model(tmp_path / "hf"), TinyShape(), split=10)
    parts = sorted(tmp_path.glob("*.gguf"))
    assert len(parts) == 2
    sources = [open_source(str(part)) for part in parts]
    for source in sources:
        assert source.name == "tiny" and source.digest == sources[0].digest
        for name, weight in tiny_weights(TinyShape()).items():
            assert np.array_equal(source.read(name), weight), name


def test_missing_or_renamed_part_of_a_split_gguf_is_named(tmp_path):
    tiny_gguf(tmp_path / "tiny.gguf", tiny_model(tmp_path / "hf"), TinyShape(), split=10)
    first, second = sorted(tmp_path.glob("*.gguf"))
    second.rename(tmp_path / "other")
    with pytest.raises(SourceError, match=r"part 1 of 2 and tiny-00002-of-00002\.gguf is missing.*merge"):
        open_source(str(first))
    first.rename(tmp_path / "tiny.gguf")
    with pytest.raises(SourceError, match=r"part 1 of 2, whose name ends in -00001-of-00002\.gguf"):
        open_source(str(tmp_path / "tiny.gguf"))


@pytest.mark.parametrize(("kind", "bits"), [("F32", 24), ("F16", 11), ("BF16", 8)])
def test_big_endian_gguf_gives_the_same_weights(tmp_path, kind, bits):
    stored = {name: kind for name, weight in tiny_weights(TinyShape()).items() if weight.ndim == 2}
    if kind == "BF16":  # bytes to the writer, which it does not turn
        source = opened(tmp_path, stored=stored, big_endian=False)
        tensors = {
            name: dataclasses.replace(
                one, data=one.data.reshape(-1, 2)[:, ::-1].reshape(one.data.shape), big_endian=True
            )
            if one.kind == "BF16"
            else one
            for name, one in source.tensors.items()
        }
        source = dataclasses.replace(source, tensors=tensors)
    else:
        source = opened(tmp_path, stored=stored, big_endian=True)
    for name, weight in tiny_weights(TinyShape()).items():
        assert np.allclose(source.read(name), weight, rtol=2.0**-bits, atol=2.0**-25), name


def test_quantized_big_endian_gguf_is_refused_when_it_is_opened(tmp_path):
    shape, weights = doubled(0)
    folder, stored = tiny_model(tmp_path / "hf"), {"lm_head.weight": "Q8_0"}
    path = tiny_gguf(tmp_path / "tiny.gguf", folder, shape, weights, stored=stored, big_endian=True)
    with pytest.raises(
        UnsupportedError, match=r"tiny\.gguf is big-endian and output\.weight is stored as Q8_0"
    ):
        open_source(str(path))


def test_list_that_is_longer_than_its_file_is_damage_and_not_read_for_ever(tmp_path):
    path, key = tmp_path / "tiny.gguf", b"tokenizer.ggml.token_type"
    raw = bytearray(tiny_gguf(path, tiny_model(tmp_path / "hf"), TinyShape()).read_bytes())
    length = raw.find(key) + len(key) + 8  # after the types of the value and of its elements
    assert int.from_bytes(raw[length : length + 8], "little") == 301
    raw[length + 6] = 1
    path.write_bytes(raw)
    with pytest.raises(SourceError, match=r"tiny\.gguf is truncated or damaged \(it ends at byte"):
        open_source(str(path))
