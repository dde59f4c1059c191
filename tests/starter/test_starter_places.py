"""Places: what is made for a sandbox, and what is not touched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from starter import places
from starter.places import Left, Made, Place, Unsafe, check_made, close_window, open_window
from starter.sandbox import (
    make_place,
    remove_place,
)
from tests.starter.staging import mode_of


def test_a_place_is_closed_until_the_window_opens(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    assert (mode_of(place.root), mode_of(place.sticky)) == (0o700, 0o700)
    assert not place.path.exists()
    open_window(place)
    assert (mode_of(place.root), mode_of(place.sticky)) == (0o711, 0o1733)
    close_window(place)
    assert (mode_of(place.root), mode_of(place.sticky)) == (0o711, 0o711)
    remove_place(place)
    assert list(tmp_path.iterdir()) == []
    remove_place(place)


def test_two_places_have_nothing_in_common(tmp_path: Path) -> None:
    one, two = make_place(tmp_path), make_place(tmp_path)
    assert one.root != two.root
    assert one.token != two.token


def test_a_place_does_not_depend_on_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        place = make_place(tmp_path)
        open_window(place)
    finally:
        os.umask(old)
    assert (mode_of(place.root), mode_of(place.sticky)) == (0o711, 0o1733)


def test_execute_may_be_reached_through_a_link_of_ours(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert make_place(tmp_path / "link").root.parent == tmp_path / "real"


def test_a_base_that_anybody_can_change_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open" / "execute").mkdir(parents=True)
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(Unsafe, match="sticky"):
        make_place(tmp_path / "open" / "execute")
    assert list((tmp_path / "open" / "execute").iterdir()) == []
    (tmp_path / "open").chmod(0o1777)
    make_place(tmp_path / "open" / "execute")


@pytest.mark.needs_root
def test_a_base_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "execute").mkdir()
    os.chown(tmp_path / "execute", 12345, 12345)
    with pytest.raises(Unsafe, match="12345"):
        make_place(tmp_path / "execute")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = make_place(tmp_path)
    open_window(made)
    return made


def made_by(path: Path) -> Made:
    found = path.lstat()
    return Made(found.st_dev, found.st_ino)


def test_the_sandbox_is_what_was_made(place: Place) -> None:
    place.path.mkdir()
    check_made(place, made_by(place.path), os.getuid())


def test_another_uid_than_the_kernel_told(place: Place) -> None:
    place.path.mkdir()
    with pytest.raises(Unsafe, match="belongs to"):
        check_made(place, made_by(place.path), os.getuid() + 1)


def test_another_directory_than_was_made(place: Place, tmp_path: Path) -> None:
    place.path.mkdir()
    with pytest.raises(Unsafe, match="not the directory"):
        check_made(place, made_by(tmp_path), os.getuid())


def test_a_link_instead_of_the_sandbox(place: Place, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    place.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Unsafe, match="not a directory"):
        check_made(place, made_by(tmp_path / "elsewhere"), os.getuid())


def test_somebody_planted_a_second_entry(place: Place) -> None:
    place.path.mkdir()
    (place.sticky / "planted").mkdir()
    with pytest.raises(Unsafe, match="2 entries"):
        check_made(place, made_by(place.path), os.getuid())


def test_no_entry_at_all(place: Place) -> None:
    with pytest.raises(Unsafe, match="0 entries"):
        check_made(place, Made(1, 1), os.getuid())


def test_a_place_that_was_replaced_is_not_touched(place: Place, tmp_path: Path) -> None:
    place.root.rename(tmp_path / "moved")
    place.root.mkdir()
    (place.root / "precious").touch()
    with pytest.raises(Unsafe):
        open_window(place)
    with pytest.raises(Left):
        remove_place(place)
    assert (place.root / "precious").exists()


def test_a_place_behind_a_link_is_not_touched(place: Place, tmp_path: Path) -> None:
    place.root.rename(tmp_path / "moved")
    place.root.symlink_to(tmp_path / "moved")
    with pytest.raises(Left):
        remove_place(place)
    assert (tmp_path / "moved" / places.STICKY).exists()


def test_a_sandbox_with_something_in_it_is_left(place: Place) -> None:
    place.path.mkdir()
    (place.path / "output").touch()
    with pytest.raises(Left) as caught:
        remove_place(place)
    assert caught.value.path == place.path
    assert (place.path / "output").exists()
