"""A step's rows as pieces: up to 8 consecutive tokens of one sequence, and where that sequence stands.

Rows of a step may belong to several sequences. What does not look back (products, norms) takes them as rows;
what does (rotation, attention) goes through this table, which the runtime writes before each step by
`ops.write_pieces`.

    piece   int64 [4]: slot of the cache, first row, rows, tokens of the sequence before the first row
"""

from __future__ import annotations

from .jit import inlined
from .ops import PIECE_BYTES, PIECE_PAST, PIECE_ROW, PIECE_ROWS, PIECE_SLOT, STEP_TABLE
from .simd import get_i64


@inlined
def piece_of(step, number):
    """The address of piece `number`."""
    return get_i64(step + 8 * STEP_TABLE) + PIECE_BYTES * number


@inlined
def piece_from(piece, row):
    """The piece that holds `row`, which is not before `piece`."""
    while row >= first_row(piece) + row_count(piece):
        piece += PIECE_BYTES
    return piece


@inlined
def slot_of(piece):
    return get_i64(piece + 8 * PIECE_SLOT)


@inlined
def first_row(piece):
    return get_i64(piece + 8 * PIECE_ROW)


@inlined
def row_count(piece):
    return get_i64(piece + 8 * PIECE_ROWS)


@inlined
def past_of(piece):
    """What is added to a row's number to have its position."""
    return get_i64(piece + 8 * PIECE_PAST) - first_row(piece)
