"""Ctrl-C at a bad moment: nothing half done, nothing lost, and a second one changes nothing."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from demo import accounts, daemons, interrupts, leftovers

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def listening() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in NUMBERS}
    interrupts.listen()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", NUMBERS)
def test_what_comes_while_held_takes_effect_at_the_end(number: signal.Signals) -> None:
    done = []

    def block() -> None:
        with interrupts.held():
            os.kill(os.getpid(), number)
            done.append("the block")

    with pytest.raises(interrupts.Interrupted):
        block()
    assert done == ["the block"]


def test_a_second_one_changes_nothing() -> None:
    with pytest.raises(interrupts.Interrupted):
        signal.raise_signal(signal.SIGINT)
    for number in NUMBERS:
        signal.raise_signal(number)


def test_what_is_on_its_way_out_is_not_interrupted() -> None:
    with interrupts.ignored():
        signal.raise_signal(signal.SIGTERM)
    with pytest.raises(interrupts.Interrupted):
        signal.raise_signal(signal.SIGTERM)


def test_what_the_parent_ignores_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    interrupts.listen()
    with interrupts.held():
        signal.raise_signal(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_tool_of_the_system_is_not_stopped_half_way(tmp_path: Path) -> None:
    """A terminal's Ctrl-C goes to the whole process group."""
    group = "read -r _ _ _ _ group _ </proc/$$/stat"
    script = f"kill -INT {os.getpid()}; {group}; [ $group != {os.getpgrp()} ] && echo all >{tmp_path}/written"
    with pytest.raises(interrupts.Interrupted):
        accounts._run("sh", "-c", script)
    assert (tmp_path / "written").read_text() == "all\n"


@pytest.mark.needs_root
def test_a_child_that_takes_the_uid_late_does_not_keep_the_account(monkeypatch: pytest.MonkeyPatch) -> None:
    kill_all, looks = accounts.kill_all, []

    def see_nothing_at_first(uid: int) -> None:
        looks.append(uid)
        if len(looks) > 1:
            kill_all(uid)

    with accounts.throw_away("test", ("bob",)) as made:
        child = subprocess.Popen(["/bin/sleep", "600"], **daemons.switched(made["bob"]))
        monkeypatch.setattr(accounts, "kill_all", see_nothing_at_first)
        accounts.remove(made["bob"].name)
    assert child.wait(10) == -signal.SIGKILL
    assert made["bob"].name not in {entry.pw_name for entry in pwd.getpwall()}


def test_an_account_that_cannot_be_removed_keeps_no_way_to_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str) -> None:
        raise accounts.AccountError(f"{name} stays")

    monkeypatch.setattr(accounts, "remove", refuse)
    monkeypatch.setattr(leftovers, "SUDOERS_DIR", tmp_path)
    drop_in = tmp_path / f"{leftovers.PREFIX}1"
    drop_in.touch()
    marker = attrs.evolve(leftovers.Marker.mine(), accounts=("sptest12ab-bob",), sudoers=str(drop_in))
    with pytest.raises(accounts.AccountError):
        leftovers.remove_site(tmp_path, marker)
    assert not drop_in.exists()
