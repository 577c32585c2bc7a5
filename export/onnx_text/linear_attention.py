"""Linear attention in ONNX nodes: a Scan over the tokens, step for step kernels_arm.recurrent.

Every sum is written out in the order of that file: no operator's own order is asked for.

Legend: B batch, T tokens of a call, h heads, j key heads, K columns of a key, padded to 16, V of a value.
"""

from __future__ import annotations

from collections.abc import Sequence

from flatlm.kernels_arm.recurrent import GROUP, LOG_TERMS

from .exp import exp, literal


def body(sizes: tuple[int, int, int, int], *, delta: bool, least: float, attributes: Sequence[str]) -> str:
    """Of a node with these heads, key heads, columns of a key and of a value."""
    h, j, key, _ = sizes
    groups, fill = -(-key // GROUP), -key % GROUP
    names = ["q", "k", "v", "dt", *(["beta"] if delta else []), "dt_bias", "decay"]
    inputs = [*names, *([] if delta else ["skip"]), "past_state"]
    lines = [
        *_gates(delta, least),
        *(line for x in "qk" for line in _heads(x, h, j, fill)),
        f"value_shape = Constant <value_ints = [0, 0, {h}, -1]> ()",
        "values = Reshape (v, value_shape)",
        *_dot(h, groups),
        *_padded("past_state", "first_state", 2, fill),
        _scan(groups, delta),
        *(_cut("last_state", "present_state", key) if fill else ["present_state = Identity (last_state)"]),
        *([] if delta else _skip()),
        "flat_shape = Constant <value_ints = [0, 0, -1]> ()",
        f"y = Reshape ({'attended' if delta else 'with_skip'}, flat_shape)",
    ]
    head = f"<{', '.join(attributes)}> ({', '.join(inputs)}) => (y, present_state)"
    return "\n".join([f"{head} {{", *(f"    {line.strip()}" for line in lines), "}"])


def softplus(x: str, y: str) -> list[str]:
    """y = log(1 + e^x), as `recurrent.softplus`."""
    terms = [literal(float(term)) for term in LOG_TERMS]
    polynomial = [f"log_p0 = Constant <value_float = {terms[0]}> ()"]
    for i, term in enumerate(terms[1:], 1):
        polynomial += [
            f"log_c{i} = Constant <value_float = {term}> ()",
            f"log_m{i} = Mul (log_p{i - 1}, log_square)",
            f"log_p{i} = Add (log_m{i}, log_c{i})",
        ]
    return [
        f"softplus_size = Abs ({x})",
        "softplus_minus = Neg (softplus_size)",
        exp("softplus_minus", "softplus_e", "_softplus"),
        "softplus_two = Constant <value_float = 2.0> ()",
        "softplus_zero = Constant <value_float = 0.0> ()",
        "softplus_below = Add (softplus_two, softplus_e)",
        "log_s = Div (softplus_e, softplus_below)",
        "log_square = Mul (log_s, log_s)",
        *polynomial,
        "log_twice = Add (log_s, log_s)",
        f"log_part = Mul (log_twice, log_p{len(terms) - 1})",
        f"softplus_positive = Max ({x}, softplus_zero)",
        f"{y} = Add (softplus_positive, log_part)",
    ]


def _gates(delta: bool, least: float) -> list[str]:
    """dt and beta → fade, share [B, T, h]."""
    return [
        "shifted = Add (dt, dt_bias)",
        *softplus("shifted", "any_step"),
        f"least = Constant <value_float = {literal(least)}> ()",
        "step = Max (any_step, least)",
        "shrinks = Mul (decay, step)",
        exp("shrinks", "fade", "_fade"),
        *(
            [
                "minus_beta = Neg (beta)",
                exp("minus_beta", "beta_e", "_beta"),
                "beta_below = Add (exp_one_beta, beta_e)",
                "share = Div (exp_one_beta, beta_below)",
            ]
            if delta
            else ["share = Identity (step)"]
        ),
    ]


def _heads(x: str, h: int, j: int, fill: int) -> list[str]:
    """x [B, T, j·k] → x_heads [B, T, h, K], each key head as often as it has heads."""
    owners = ", ".join(str(head * j // h) for head in range(h))
    repeated = f"{x}_repeated"
    return [
        f"{x}_shape = Constant <value_ints = [0, 0, {j}, -1]> ()",
        f"{x}_apart = Reshape ({x}, {x}_shape)",
        f"{x}_owners = Constant <value_ints = [{owners}]> ()",
        f"{repeated} = Gather <axis = 2> ({x}_apart, {x}_owners)",
        *_padded(repeated, f"{x}_heads", 3, fill),
    ]


def _padded(x: str, y: str, axis: int, fill: int) -> list[str]:
    if not fill:
        return [f"{y} = Identity ({x})"]
    return [
        f"{y}_pads = Constant <value_ints = [0, {fill}]> ()",
        f"{y}_axis = Constant <value_ints = [{axis}]> ()",
        f"{y}_zero = Constant <value_float = 0.0> ()",
        f"{y} = Pad ({x}, {y}_pads, {y}_zero, {y}_axis)",
    ]


def _cut(x: str, y: str, size: int) -> list[str]:
    return [
        "cut_first = Constant <value_ints = [0]> ()",
        f"cut_end = Constant <value_ints = [{size}]> ()",
        "cut_axis = Constant <value_ints = [2]> ()",
        f"{y} = Slice ({x}, cut_first, cut_end, cut_axis)",
    ]


def _sum(name: str, x: str, count: int, axis: int) -> list[str]:
    """`name` = the `count` parts of x along an axis, added one after another."""
    if count == 1:
        return [f"{name} = Identity ({x})"]
    parts = [f"{name}_part{i}" for i in range(count)]
    totals = [parts[0], *(f"{name}_total{i}" for i in range(1, count - 1)), name]
    return [
        f"{', '.join(parts)} = Split <axis = {axis}, num_outputs = {count}> ({x})",
        *(f"{totals[i]} = Add ({totals[i - 1]}, {parts[i]})" for i in range(1, count)),
    ]


def _dot(h: int, groups: int) -> list[str]:
    """same [B, T, h]: q·k of each head, as `recurrent.dot`."""
    halves = []
    for i, lanes in enumerate(("dot_lanes", "dot_8", "dot_4", "dot_2")):
        after = ("dot_8", "dot_4", "dot_2", "dot_1")[i]
        halves += [
            f"{lanes}_a, {lanes}_b = Split <axis = 4, num_outputs = 2> ({lanes})",
            f"{after} = Add ({lanes}_a, {lanes}_b)",
        ]
    return [
        "dot_products = Mul (q_heads, k_heads)",
        f"dot_shape = Constant <value_ints = [0, 0, {h}, {groups}, {GROUP}]> ()",
        "dot_groups = Reshape (dot_products, dot_shape)",
        *_sum("dot_lanes", "dot_groups", groups, 3),
        *halves,
        "same_shape = Constant <value_ints = [0, 0, -1]> ()",
        "same = Reshape (dot_1, same_shape)",
    ]


def _matrix_sum(name: str, x: str, groups: int) -> list[str]:
    """`name` [B, h, V] = x [B, h, K] · the matrix, as `recurrent.in_groups`."""
    return [
        f"{name}_column = Unsqueeze ({x}, last)",
        f"{name}_products = Mul ({name}_column, state)",
        f"{name}_groups = Reshape ({name}_products, group_shape)",
        *_sum(f"{name}_within", f"{name}_groups", GROUP, 3),
        *_sum(f"{name}_sum", f"{name}_within", groups, 2),
        f"{name} = Reshape ({name}_sum, flat_shape)",
    ]


def _scan(groups: int, delta: bool) -> str:
    """Tokens one after another: the last matrix, and `attended` [B, T, h, V]."""
    updates = [
        *_matrix_sum("seen", "k", groups),
        "faded_seen = Mul (f, seen)",
        "missing = Sub (v, faded_seen)",
        "u = Mul (b, missing)",
    ]
    lines = [
        "last = Constant <value_ints = [-1]> ()",
        "row_axis = Constant <value_ints = [2]> ()",
        f"group_shape = Constant <value_ints = [0, 0, {groups}, {GROUP}, -1]> ()",
        "flat_shape = Constant <value_ints = [0, 0, -1]> ()",
        "f = Unsqueeze (f_t, last)",
        "b = Unsqueeze (b_t, last)",
        "qk = Unsqueeze (qk_t, last)",
        *(updates if delta else ["u = Mul (b, v)"]),
        *_matrix_sum("asked", "q", groups),
        "faded_asked = Mul (f, asked)",
        "own = Mul (qk, u)",
        "y_t = Add (faded_asked, own)",
        "f_matrix = Unsqueeze (f, last)",
        "k_column = Unsqueeze (k, last)",
        "u_row = Unsqueeze (u, row_axis)",
        "faded = Mul (f_matrix, state)",
        "added = Mul (k_column, u_row)",
        "next_state = Add (faded, added)",
    ]
    given = [
        "float[B, h, K, V] state", "float[B, h, K] q", "float[B, h, K] k", "float[B, h, V] v",
        "float[B, h] f_t", "float[B, h] b_t", "float[B, h] qk_t",
    ]  # fmt: skip
    made = "float[B, h, K, V] next_state, float[B, h, V] y_t"
    axes = ", ".join("1" for _ in given[1:])
    inner = "\n".join(f"        {line}" for line in lines)
    return (
        f"last_state, attended = Scan <num_scan_inputs = {len(given) - 1}, scan_input_axes = [{axes}], "
        f"scan_output_axes = [1], body = token ({', '.join(given)}) => ({made}) {{\n{inner}\n    }}> "
        "(first_state, q_heads, k_heads, values, fade, share, same)"
    )


def _skip() -> list[str]:
    """`with_skip`: each head's value times its weight is added."""
    return [
        "skip_axis = Constant <value_ints = [1]> ()",
        "skip_column = Unsqueeze (skip, skip_axis)",
        "skipped = Mul (skip_column, values)",
        "with_skip = Add (attended, skipped)",
    ]
