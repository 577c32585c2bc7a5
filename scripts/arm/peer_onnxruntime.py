"""onnxruntime's 4-bit product, to be counted: MatMulNBits, blocks of 32, int8 activations (accuracy level 4).

python scripts/arm/peer_onnxruntime.py write FILE N K                       on this machine (needs onnx)
scripts/arm/run CPU --count COUNTS scripts/arm/peer_onnxruntime.py run FILE M TIMES        on the emulated one
"""

from __future__ import annotations

import sys

import numpy as np

BLOCK = 32


def write(path: str, n: int, k: int) -> None:
    """A model of one node: x float32 [m, k] by random 4-bit weights [n, k] with a scale per block."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = rng.integers(0, 256, (n, k // BLOCK, BLOCK // 2), np.uint8)
    scales = rng.random(n * k // BLOCK, np.float32)
    node = helper.make_node(
        "MatMulNBits", ["x", "weights", "scales"], ["y"], domain="com.microsoft",
        K=k, N=n, bits=4, block_size=BLOCK, accuracy_level=4,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["m", k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m", n])],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(scales, "scales")],
    )
    domains = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=10), path)


def run(path: str, m: int, times: int) -> None:
    """The product of m rows `times` times, one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((m, session.get_inputs()[0].shape[1]), np.float32)
    for _ in range(times):
        (y,) = session.run(None, {"x": x})
    print(f"onnxruntime {onnxruntime.__version__}, {y.shape}")


if __name__ == "__main__":
    verb, path, *numbers = sys.argv[1:]
    {"write": write, "run": run}[verb](path, *map(int, numbers))
