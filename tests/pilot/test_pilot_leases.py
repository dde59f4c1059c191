"""Leases of sub-uids: one a sandbox, never two of one, free again when the sandbox is gone and nobody uses them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pilot.leases import LeaseFault, Leases, Ranges, TableBusy, parse_ranges, read_ranges

SMALL = Ranges(((100, 2), (500, 1)), ((900, 9),))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "leases"


def room(tmp_path: Path, name: str) -> Path:
    path = tmp_path / name
    path.mkdir()
    return path


def test_ranges_are_an_accounts_own_by_name_or_number() -> None:
    text = "alice:100000:65536\n1001:300000:10\nbob:7:3\nalice:500000:5\n\nalice:x:1\nalice:1:-1\nalice\n"
    assert parse_ranges(text, ["1001", "alice"], 1001) == ((100000, 65536), (300000, 10), (500000, 5))


@pytest.mark.parametrize("line", ["me:0:10", "me:1000:5", "me:100:0", "me:4294967290:100", "me:-5:10"])
def test_a_range_with_root_or_ourselves_or_beyond_all_ids_is_none(line: str) -> None:
    assert parse_ranges(line, ["me"], 1001) == ()


def test_pairs_go_through_all_ranges() -> None:
    assert SMALL.count == 3
    assert [SMALL.pair(number) for number in range(3)] == [(100, 900), (101, 901), (500, 902)]


def test_without_a_range_the_words_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(LeaseFault, match=r"subuid has no range for .*usermod") as fault:
        read_ranges(tmp_path / "subuid", tmp_path / "subgid")
    assert not fault.value.passing


def test_a_sandbox_keeps_its_lease_and_another_gets_another(tmp_path: Path, directory: Path) -> None:
    leases = Leases(directory, SMALL)
    one, two = room(tmp_path, "one"), room(tmp_path, "two")
    first, again, other = leases.take(one), leases.take(one), leases.take(two)
    assert (first.uid, first.gid) == (again.uid, again.gid)
    assert other.uid != first.uid
    for lease in (first, again, other):
        os.close(lease.fd)
    found = Leases(directory, SMALL).take(one)  # another pilot, after a crash of this one
    assert found.uid == first.uid
    os.close(found.fd)


def test_a_lease_is_free_when_its_sandbox_is_gone_and_nobody_holds_it(tmp_path: Path, directory: Path) -> None:
    leases = Leases(directory, Ranges(((100, 1),), ((900, 1),)))
    one, two = room(tmp_path, "one"), room(tmp_path, "two")
    held = leases.take(one)
    one.rmdir()
    with pytest.raises(LeaseFault, match="all 1 sub-uids") as fault:
        leases.take(two)
    assert fault.value.passing
    os.close(held.fd)
    now = leases.take(two)
    assert now.uid == held.uid
    os.close(now.fd)


def test_a_lease_without_a_sandbox_lasts_as_long_as_its_lock(directory: Path) -> None:
    leases = Leases(directory, Ranges(((100, 1),), ((900, 1),)))
    for _ in range(3):
        os.close(leases.take(None).fd)


def test_only_a_sub_uid_in_use_can_be_joined(tmp_path: Path, directory: Path) -> None:
    leases = Leases(directory, SMALL)
    lease = leases.take(room(tmp_path, "one"))
    joined = leases.join(lease.uid)
    assert (joined.uid, joined.gid) == (lease.uid, lease.gid)
    with pytest.raises(LeaseFault, match="no job has the account"):
        leases.join(lease.uid + 1000)
    os.close(joined.fd)
    os.close(lease.fd)


def test_a_busy_table_is_said_and_not_waited_for(directory: Path) -> None:
    leases = Leases(directory, SMALL)
    os.close(leases.take(None).fd)
    fd, table = leases._lock_table()
    with pytest.raises(TableBusy):
        leases.take(None)
    os.close(table)
    os.close(fd)
    os.close(leases.take(None).fd)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"gid": "x", "root": 1}'])
def test_a_broken_lease_is_not_given_away(tmp_path: Path, directory: Path, content: bytes) -> None:
    directory.mkdir(mode=0o700)
    (directory / "100").write_bytes(content)
    leases = Leases(directory, Ranges(((100, 1),), ((900, 1),)))
    with pytest.raises(LeaseFault, match="all 1 sub-uids"):
        leases.take(room(tmp_path, "one"))
    with pytest.raises(LeaseFault, match="no job"):
        leases.join(100)


def test_a_directory_open_to_others_or_a_link_is_refused(tmp_path: Path, directory: Path) -> None:
    directory.mkdir(mode=0o755)
    with pytest.raises(LeaseFault, match="closed to others"):
        Leases(directory, SMALL).take(None)
    (tmp_path / "link").symlink_to(directory)
    with pytest.raises(LeaseFault, match="link"):
        Leases(tmp_path / "link", SMALL).take(None)
