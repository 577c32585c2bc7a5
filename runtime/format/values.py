"""What a value of a graph is: a kind and a width. Every function says which it reads and which it makes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Value:
    """`size`: columns of a stream or a table; number and columns of heads and of a cache, whose kind says its
    type; the shape of a state.
    """

    kind: str
    size: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind} of {' × '.join(map(str, self.size))}" if self.size else self.kind


Values = tuple[Value, ...]

IDS, POSITIONS = Value("token ids"), Value("positions")
UNKNOWN_CACHE = Value("a cache that no node has")  # an input of the graph, until a node takes it
_EXPERT_ROWS = "rows of experts"
CACHE, NEW_CACHE = "a cache in ", "a new cache in "  # and the type
STATE, NEW_STATE = "a state in ", "a new state in "  # the same of a size that does not grow


def streams(*columns: int) -> Values:
    return tuple(Value("a stream", (size,)) for size in columns)


def table(half: int) -> Value:
    """cos or sin for half a head."""
    return Value("a rotary table", (half,))


def heads(number: int, size: int) -> Value:
    """Rows of `number` heads of `size` columns each."""
    return Value("heads", (number, size))


def choice(experts: int, kept: int) -> Value:
    """Which `kept` of `experts` each token goes to."""
    return Value("a choice of experts", (experts, kept))


def shares(kept: int) -> Value:
    """Of each token's `kept` experts."""
    return Value("shares of experts", (kept,))


def expert_rows(columns: int, kept: int) -> Value:
    """For each token a row of so many columns from each of its `kept` experts."""
    return Value(_EXPERT_ROWS, (columns, kept))


def are_of_experts(value: Value) -> bool:
    return value.kind == _EXPERT_ROWS


def kept_of(value: Value) -> int:
    """Experts of a token, of rows or a choice; of what is neither, some: see `columns_of`."""
    return (*value.size, 1, 1)[1]


def like(value: Value, columns: int) -> Values:
    """Rows of so many columns: of experts as `value` is, or a stream."""
    return (expert_rows(columns, kept_of(value)),) if are_of_experts(value) else streams(columns)


def columns_of(value: Value) -> int:
    """The width of a stream; of what is none, some width: the value then is not what the reader wants."""
    return sum(value.size[:1])


def heads_of(value: Value) -> tuple[int, int]:
    """Number and size of heads; of what is none, some: the value then is not what the reader wants."""
    if value.kind != "heads":
        return 1, 2
    number, size = value.size
    return number, size


def state(prefix: str, *shape: int) -> Value:
    """A float32 state, before or after the step."""
    return Value(f"{prefix}float32", shape)


def is_past(value: Value) -> bool:
    """What an earlier step left: an input of the graph."""
    return value.kind.startswith((CACHE, STATE))


def is_present(value: Value) -> bool:
    """What a step leaves to the next: an output of the graph."""
    return value.kind.startswith((NEW_CACHE, NEW_STATE))
