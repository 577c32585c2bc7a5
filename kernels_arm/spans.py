"""A step's rows as spans: up to 8 consecutive tokens of one sequence, and where that sequence stands.

Rows of a step may belong to several sequences. What does not look back (products, norms) takes them as rows;
what does (rotation, attention) goes through this table, which the runtime writes before each step by
`ops.write_spans`.

    span   int64 [4]: slot of the cache, first row, rows, tokens of the sequence before the first row
"""

from __future__ import annotations

from .jit import inlined
from .ops import SPAN_BYTES, SPAN_PAST, SPAN_ROW, SPAN_ROWS, SPAN_SLOT, STEP_SPANS, STEP_TABLE
from .simd import get_i64


@inlined
def span_of(step, number):
    """The address of span `number`."""
    return get_i64(step + 8 * STEP_TABLE) + SPAN_BYTES * number


@inlined
def span_from(span, row):
    """The span that holds `row`, which is not before `span`."""
    while row >= first_row(span) + row_count(span):
        span += SPAN_BYTES
    return span


@inlined
def slot_of(span):
    """The slot of the cache where its sequence stands."""
    return get_i64(span + 8 * SPAN_SLOT)


@inlined
def first_row(span):
    """The number of its first row in the step."""
    return get_i64(span + 8 * SPAN_ROW)


@inlined
def row_count(span):
    """1 to 8."""
    return get_i64(span + 8 * SPAN_ROWS)


@inlined
def past_of(span):
    """What is added to a row's number to have its position."""
    return get_i64(span + 8 * SPAN_PAST) - first_row(span)


@inlined
def sequence_end(step, number):
    """The number of the first span after `number` that is of another sequence."""
    slot, end, count = slot_of(span_of(step, number)), number + 1, get_i64(step + 8 * STEP_SPANS)
    while end < count and slot_of(span_of(step, end)) == slot:
        end += 1
    return end


@inlined
def rows_until(step, number, end):
    """Rows of spans `number` … `end` of one sequence."""
    last = span_of(step, end - 1)
    return first_row(last) + row_count(last) - first_row(span_of(step, number))
