"""Integer layers in the export, through the device's kernels: as the float32 operations have them."""

from __future__ import annotations

import numpy as np
import pytest

from flatlm.export.passes.flatten import FlatProduct, Flattening
from flatlm.export.products import BATCH, integer_linear


@pytest.mark.parametrize("by_token", [False, True])
@pytest.mark.parametrize(("n", "k", "tokens"), [(37, 50, 9), (16, 64, 2 * BATCH + 5)])
def test_equals_the_float_operation(n: int, k: int, tokens: int, by_token: bool):
    rng = np.random.default_rng(0)
    pieces = np.where(np.arange(k) % 7 == 3, 5, 1)
    flattening = Flattening(2.0, 127, pieces, by_token)
    integers = rng.integers(-119, 120, (n, k)).astype(np.float32)
    steps, bias = rng.uniform(0.5, 2, n), rng.normal(size=n).astype(np.float32)
    x = (rng.normal(size=(1, tokens, k)) * pieces).astype(np.float32)
    product = FlatProduct(integers, steps, bias, flattening)
    run, _ = integer_linear(product)
    np.testing.assert_array_equal(run(x)[0], product.operation()(x)[0])
