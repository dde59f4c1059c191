"""The way to the work directory: opened only where it must be, restored by the last who leaves."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest

from startd.workdir import Unreachable, open_way
from starter.private import ticks_of


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """pytest's own directories above are 0700 and ours, so they are opened and restored too."""
    target = tmp_path / "closed" / "execute"
    target.mkdir(parents=True)
    target.chmod(0o711)
    (tmp_path / "closed").chmod(0o700)
    return target


def test_parents_are_opened_for_passing_only_and_restored(tree: Path) -> None:
    way = open_way(tree)
    assert mode(tree.parent) == 0o701
    way.close()
    assert mode(tree.parent) == 0o700
    assert list(tree.parent.iterdir()) == [tree]


def test_only_the_last_pilot_restores(tree: Path) -> None:
    ours = open_way(tree)
    record = tree.parent / ".sailplane-opened"
    content = json.loads(record.read_text())
    with subprocess.Popen(["sleep", "60"]) as other:
        record.write_text(json.dumps({**content, f"{other.pid}-{ticks_of(other.pid)}": 1}))
        ours.close()
        assert mode(tree.parent) == 0o701
        other.kill()
    again = open_way(tree)
    again.close()
    assert mode(tree.parent) == 0o700


def test_a_pilot_that_was_killed_does_not_keep_it_open(tree: Path) -> None:
    way = open_way(tree)
    record = tree.parent / ".sailplane-opened"
    content = json.loads(record.read_text())
    record.write_text(json.dumps({**content, "4194303-17": 1}))
    way.close()
    assert mode(tree.parent) == 0o700


def test_what_is_open_already_is_not_touched(tmp_path: Path, tree: Path) -> None:
    tree.parent.chmod(0o755)
    way = open_way(tree)
    assert tree.parent not in way.directories
    way.close()
    assert mode(tree.parent) == 0o755


@pytest.mark.needs_root
def test_a_foreign_closed_parent_is_named(tmp_path: Path, tree: Path) -> None:
    os.chown(tree.parent, 12345, 12345)
    with pytest.raises(Unreachable, match="closed"):
        open_way(tree)
    os.chown(tree.parent, 0, 0)
