"""docs/map.md against the files: what scripts/make_map.py makes of them, and every file says what it is."""

from __future__ import annotations

from scripts import make_map


def test_the_map_is_that_of_the_files():
    assert make_map.MAP.read_text(encoding="utf-8") == make_map.page(), "run python scripts/make_map.py"


def test_every_file_says_what_it_is():
    assert [line for line in make_map.page().splitlines() if line.endswith(": ")] == []


def test_a_sentence_ends_at_its_full_stop_and_not_within_a_name():
    assert make_map.sentence("What config.json says,\nread. And more.") == "What config.json says, read"
