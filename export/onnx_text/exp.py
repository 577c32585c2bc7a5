"""e^x in ONNX nodes, step for step `kernels_arm.reference.exp`; 2^n is from a table, exact on any device."""

from __future__ import annotations

from flatlm.kernels_arm import reference


def exp(x: str, y: str, tag: str = "") -> str:
    """The lines of a body for y = e^x; `tag` keeps their names apart where a body has several."""
    values: dict[str, float] = {
        "lowest_x": float(reference.EXP_LOW),
        "highest_x": float(reference.EXP_HIGH),
        "log2e": float(reference.LOG2E),
        "ln2_high": float(reference.LN2_HIGH),
        "ln2_low": float(reference.LN2_LOW),
        "exp_one": 1.0,
        "exp_zero": 0.0,
        **{f"c{i}": c for i, c in enumerate(map(float, reference.EXP_POLYNOMIAL))},
    }
    powers = ", ".join(literal(2.0**n) for n in range(-126, 128))
    constants = [
        *(f"{name}{tag} = Constant <value_float = {literal(value)}> ()" for name, value in values.items()),
        f"exp_first{tag} = Constant <value_int = 126> ()",
        f"powers_of_two{tag} = Constant <value_floats = [{powers}]> ()",
    ]
    steps = [
        ("at_least", "Max", x, "lowest_x"),
        ("within", "Min", "at_least", "highest_x"),
        ("in_log2", "Mul", "within", "log2e"),
        ("n", "Round", "in_log2"),
        ("n_high", "Mul", "n", "ln2_high"),
        ("r_high", "Sub", "within", "n_high"),
        ("n_low", "Mul", "n", "ln2_low"),
        ("r", "Sub", "r_high", "n_low"),
        *(step for i in range(1, 6) for step in _polynomial_step(i)),
        ("r_squared", "Mul", "r", "r"),
        ("p_scaled", "Mul", "p5", "r_squared"),
        ("p_and_r", "Add", "p_scaled", "r"),
        ("fraction", "Add", "p_and_r", "exp_one"),
        ("n_int", "Cast <to = 7>", "n"),
        ("power_index", "Add", "n_int", "exp_first"),
        ("power", "Gather", "powers_of_two", "power_index"),
        ("exponential", "Mul", "fraction", "power"),
        ("vanishes", "Less", x, "lowest_x"),
        (y, "Where", "vanishes", "exp_zero", "exponential"),
    ]
    lines = [*constants, *(_line(tag, (x, y), *step) for step in steps)]
    return "\n".join("    " + line for line in lines)


def _line(tag: str, given: tuple[str, str], result: str, operator: str, *operands: str) -> str:
    names = [name if name in given else name + tag for name in (result, *operands)]
    return f"{names[0]} = {operator} ({', '.join(names[1:])})"


def _polynomial_step(i: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    before = "c0" if i == 1 else f"p{i - 1}"
    return (f"m{i}", "Mul", before, "r"), (f"p{i}", "Add", f"m{i}", f"c{i}")


def literal(value: float) -> str:
    """A float32 as text that reads back exactly and as a float."""
    text = f"{value:.9g}"
    return text if "." in text or "e" in text else text + ".0"
