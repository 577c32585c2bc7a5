"""Independent work side by side."""

import threading

import pytest

from flatlm.export.parallel import each


def test_results_come_in_the_order_of_the_items():
    assert each(lambda x: x * x, range(50)) == [x * x for x in range(50)]


def test_an_error_in_one_item_is_the_error_of_all():
    with pytest.raises(ZeroDivisionError):
        each(lambda x: 1 // x, [1, 0, 2])


def test_work_leaves_the_calling_thread():
    assert threading.get_ident() not in each(lambda _: threading.get_ident(), range(4))
