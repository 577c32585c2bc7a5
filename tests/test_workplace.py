"""The folder an export works in: taken only where nobody else could have put something there."""

from __future__ import annotations

import os

import pytest

from flatlm.export.workplace import workplace
from flatlm.runtime.errors import UsageError

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
OTHER = 12345


def enter(out):
    with workplace(out, pytest.fail) as place:
        return place


def test_nobody_else_can_read_or_write_it(tmp_path):
    before = os.umask(0)
    try:
        with workplace(tmp_path / "out", pytest.fail) as place:
            assert place.stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_others_can_write_is_refused(tmp_path):
    place = tmp_path / ".out.export"
    place.mkdir()
    place.chmod(0o777)
    with pytest.raises(UsageError, match=r"\.out\.export.* can be written by other users"):
        enter(tmp_path / "out")
    assert list(place.iterdir()) == []


@as_root
def test_a_folder_of_another_user_is_refused_and_its_journal_not_touched(tmp_path):
    place = tmp_path / ".out.export"
    (place / "journal").mkdir(parents=True)
    (place / "journal" / "key").write_text("mine")
    os.chown(place, OTHER, OTHER)
    with pytest.raises(UsageError, match=rf"belongs to another user \(uid {OTHER}\)"):
        enter(tmp_path / "out")
    assert (place / "journal" / "key").read_text() == "mine"


@as_root
def test_a_journal_of_another_user_is_refused(tmp_path):
    journal = tmp_path / ".out.export" / "journal"
    journal.mkdir(parents=True)
    os.chown(journal, OTHER, OTHER)
    with pytest.raises(UsageError, match=rf"journal is of another user \(uid {OTHER}\)"):
        enter(tmp_path / "out")


def test_a_link_in_its_place_is_not_followed(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / ".out.export").symlink_to(tmp_path / "mine")
    with pytest.raises(UsageError, match=r"is a link, to .*mine"):
        enter(tmp_path / "out")
    assert list((tmp_path / "mine").iterdir()) == []


@pytest.mark.parametrize("name", ["lock", "artifact", "journal"])
def test_links_inside_are_not_followed(tmp_path, name):
    victim = tmp_path / "victim"
    victim.write_text("kept")
    place = tmp_path / ".out.export"
    place.mkdir()
    (place / name).symlink_to(victim)
    with pytest.raises(UsageError, match=rf"{name} (is a link|cannot be opened)"):
        enter(tmp_path / "out")
    assert victim.read_text() == "kept"


def test_a_file_in_its_place_is_refused(tmp_path):
    (tmp_path / ".out.export").write_text("x")
    with pytest.raises(UsageError, match="cannot write beside"):
        enter(tmp_path / "out")
    assert (tmp_path / ".out.export").read_text() == "x"
