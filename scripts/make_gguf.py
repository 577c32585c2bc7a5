"""Makes the GGUF files that llama.cpp is compared on: the same weights, in llama.cpp's own quantizations.

    python scripts/make_gguf.py SRC OUT_FOLDER -t Q4_0,Q8_0,Q4_K_M
    python scripts/make_gguf.py HF_FOLDER OUT_FOLDER -t Q4_0 --like MODEL.gguf

SRC is a GGUF file, or a Hugging Face folder together with a GGUF of the same model, from which metadata and
tokenizer are copied. Weights are dequantized to F16 (OUT/NAME-F16.gguf, kept), then llama.cpp quantizes them,
with its own choices for embedding and head. Needs flatlm[export,bench].
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from gguf.quants import dequantize
from llama_peer import silence

from flatlm.export.sources.gguf_file import open_gguf
from flatlm.export.sources.hf_folder import open_hf_folder

HEAD, EMBEDDING = "output.weight", "token_embd.weight"
# What the writer adds itself, and what describes a quantization that is undone here.
_OWN = ("GGUF.", "general.architecture", "general.file_type", "general.quantization_version")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("-t", "--types", default="Q4_0", help="comma-separated (default Q4_0)")
    parser.add_argument("--like", type=Path, help="GGUF of the same model, needed where SRC is a folder")
    parser.add_argument("--name", help="the files are OUT/NAME-TYPE.gguf (default: the source's name)")
    parser.add_argument("--threads", type=int, default=0, help="0: all")
    args = parser.parse_args()
    if args.source.is_dir() and args.like is None:
        parser.error("a folder needs --like MODEL.gguf for metadata and tokenizer")
    args.out.mkdir(parents=True, exist_ok=True)
    name = args.name or (args.source.name if args.source.is_dir() else args.source.stem)
    plain = args.out / f"{name}-F16.gguf"
    if not plain.exists():
        write_f16(args.like or args.source, plain, args.source if args.source.is_dir() else None)
    for kind in args.types.split(","):
        made = args.out / f"{name}-{kind}.gguf"
        if made.exists() and any(made.samefile(read) for read in (args.source, args.like) if read):
            parser.error(f"{made} is a file that is read: choose another folder or --name")
        print(quantize(plain, made, kind, args.threads))


def write_f16(
    like: Path,
    out: Path,
    folder: Path | None = None,
    *,
    change: Callable[[gguf.ReaderTensor, np.ndarray], np.ndarray] | None = None,
    tie: bool = False,
) -> None:
    """`like` with F16 matrices and F32 vectors, weights from `folder` where given; `out` appears whole.

    change: applied to a tensor's values. tie: a tied model that has its matrix twice in `like` gets it once.
    """
    if out.exists() and out.samefile(like):
        raise ValueError(f"{out} is the file that is read: choose another name")
    reader = gguf.GGUFReader(like)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if tie and HEAD in tensors and "lm_head.weight" not in open_gguf(like).tensors:
        tensors[EMBEDDING] = tensors.pop(HEAD)
    architecture = reader.fields["general.architecture"].contents()
    partial = out.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, architecture, use_temp_file=False)
    for field in reader.fields.values():
        if not field.name.startswith(_OWN):
            kind, *rest = field.types
            writer.add_key_value(field.name, field.contents(), kind, sub_type=rest[-1] if rest else None)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    read = _from_folder(folder, like) if folder else _from_gguf
    for i, (name, tensor) in enumerate(tensors.items(), 1):
        values = read(tensor)
        if change is not None:
            values = change(tensor, values)
        writer.add_tensor(name, values.astype(np.float16 if values.ndim > 1 else np.float32))
        print(f"\r{out.name}: tensor {i} of {len(tensors)}", end="", file=sys.stderr)
    print(file=sys.stderr)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(out)


def _from_gguf(tensor: gguf.ReaderTensor) -> np.ndarray:
    shape = [int(size) for size in reversed(tensor.shape)]
    return dequantize(tensor.data, tensor.tensor_type).reshape(shape)


def _from_folder(folder: Path, like: Path) -> Callable[[gguf.ReaderTensor], np.ndarray]:
    source, layout = open_hf_folder(folder), open_gguf(like)
    names = {tensor.name: name for name, tensor in layout.tensors.items()}
    names.setdefault("token_embd.weight", "model.embed_tokens.weight")  # tied: the head stands for it there

    def read(tensor: gguf.ReaderTensor) -> np.ndarray:
        name = names[tensor.name]
        heads = next((count for ending, count in layout.heads_of.items() if name.endswith(ending)), 0)
        return permute(source.read(name), heads) if heads else source.read(name)

    return read


def permute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from two rotary halves to pairs side by side, as `llama` GGUF files have them."""
    return rows.reshape(heads, 2, len(rows) // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def quantize(plain: Path, out: Path, kind: str, threads: int) -> Path:
    """llama.cpp's quantization of an F16 file, with its defaults."""
    constant = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}", None)
    if constant is None:
        raise SystemExit(f"llama.cpp has no type {kind}")
    silence()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = constant, threads
    status = llama_cpp.llama_model_quantize(str(plain).encode(), str(out).encode(), params)
    if status:
        raise SystemExit(f"llama_model_quantize {plain} to {kind} failed with {status}")
    return out


if __name__ == "__main__":
    main()
