"""Sites, leftovers, accounts and the reachable runtime: what is made goes away, and nothing else."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import attrs
import pytest

from demo import accounts, daemons, leftovers, runtime
from demo.site import Site

SLEEPER = [sys.executable, "-c", "import os, sys, time; os.write(int(sys.argv[2]), b'ready\\n'); time.sleep(600)"]


def gone_marker() -> leftovers.Marker:
    """A marker whose maker has ended."""
    child = subprocess.Popen(["/bin/true"])
    ticks = accounts.start_ticks(child.pid) or 1
    child.wait()
    return attrs.evolve(leftovers.Marker.mine(), pid=child.pid, ticks=ticks)


@pytest.fixture
def bases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Leftovers are looked for in the test's own directory only."""
    monkeypatch.setattr(leftovers, "BASES", (tmp_path,))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(accounts, "abandoned", list)
    return tmp_path


def site_directory(base: Path, marker: leftovers.Marker) -> Path:
    directory = base / f"{leftovers.PREFIX}test-x"
    directory.mkdir()
    marker.write(directory)
    return directory


def test_a_killed_runs_directory_and_processes_go(bases: Path) -> None:
    directory = site_directory(bases, gone_marker())
    child = subprocess.Popen(["/bin/sleep", "600"], env={leftovers.VARIABLE: str(directory)})
    while leftovers.processes_in(directory) == {}:
        assert child.poll() is None
    (directory / "closed").mkdir(mode=0o000)
    assert leftovers.remove_abandoned() == [f"{directory} of a run that is over"]
    assert child.wait(10) == -signal.SIGKILL
    assert not directory.exists()


def test_what_a_living_run_uses_stays(bases: Path) -> None:
    directory = site_directory(bases, leftovers.Marker.mine())
    assert leftovers.remove_abandoned(kept=True) == []
    assert directory.exists()


def test_what_was_kept_stays_until_clean(bases: Path) -> None:
    directory = site_directory(bases, attrs.evolve(gone_marker(), kept=True))
    assert leftovers.remove_abandoned() == []
    assert leftovers.remove_abandoned(kept=True) != []
    assert not directory.exists()


def test_what_has_no_marker_of_ours_stays(bases: Path) -> None:
    (bases / "sailplane-mine").mkdir()
    (bases / "sailplane-mine" / leftovers.MARKER).write_text("{}")
    other = bases / "elsewhere"
    other.mkdir()
    gone_marker().write(other)
    (bases / "sailplane-link").symlink_to(other)
    assert leftovers.remove_abandoned(kept=True) == []
    assert other.exists()


def test_a_reader_of_the_directory_is_not_killed(bases: Path) -> None:
    directory = site_directory(bases, gone_marker())
    reader = subprocess.Popen(["/bin/sleep", "600"], cwd=directory, env={})
    try:
        leftovers.remove_abandoned()
        assert reader.poll() is None
    finally:
        reader.kill()
        reader.wait()


@pytest.mark.parametrize("path", ["/etc/sudoers", "/etc/sudoers.d/README", "/etc/sudoers.d/../sailplane-x"])
def test_only_our_own_sudoers_files_are_removed(path: str) -> None:
    with pytest.raises(leftovers.LeftoverError, match="leaving it"):
        leftovers._remove_sudoers(Path(path))


@pytest.mark.parametrize("name", ["root", "sptest12-alice", "spdemo12ab-", "spdemo12ab-alice;x"])
def test_only_throw_away_names_are_removed(name: str) -> None:
    with pytest.raises(accounts.AccountError, match="throw-away"):
        accounts.remove(name)


@pytest.mark.needs_root
def test_an_account_of_that_name_that_is_not_ours_stays(accounts: Mapping[str, accounts.Account]) -> None:
    from demo import accounts as module

    name = accounts["bob"].name
    old = pwd.getpwnam(name).pw_gecos
    subprocess.run(["usermod", "--comment", "somebody", name], check=True)
    try:
        with pytest.raises(module.AccountError, match="not made by Sailplane"):
            module.remove(name)
        assert pwd.getpwnam(name).pw_uid == accounts["bob"].uid
    finally:
        subprocess.run(["usermod", "--comment", old, name], check=True)


@pytest.mark.needs_root
def test_removing_an_account_ends_its_processes() -> None:
    with accounts.throw_away("test", ("alice",)) as made:
        account = made["alice"]
        child = subprocess.Popen(
            ["/bin/sh", "-c", "trap '' TERM; sleep 600 & sleep 600"],
            start_new_session=True,
            **daemons.switched(account),
        )
        while len(accounts.processes_of([account.uid])) < 2:
            assert child.poll() is None
    assert child.wait(10) == -signal.SIGKILL
    assert accounts.processes_of([account.uid]) == {}
    with pytest.raises(KeyError):
        pwd.getpwnam(account.name)


def test_an_interpreter_in_a_closed_directory_is_out_of_reach(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    assert not runtime.traversable(closed / "x")
    assert runtime.traversable(Path("/usr/bin/python3"))


def test_a_copied_runtime_runs_by_itself(tmp_path: Path) -> None:
    place = tmp_path / "runtime"
    runtime._copy(place)
    python = runtime._open_interpreter()
    environment = {"PYTHONPATH": str(place), "PATH": "/usr/bin:/bin"}
    copied = runtime.Runtime(python, environment, place)
    done = subprocess.run(
        copied.argv("sailplane", "--help"), env=environment, cwd="/", capture_output=True, text=True, check=True
    )
    assert "submit" in done.stdout
    assert all(path.stat().st_mode & 0o004 for path in place.rglob("*.py"))


def test_waiting_ends_at_once_when_a_daemon_dies(tmp_path: Path) -> None:
    program = [sys.executable, "-c", "print('no such luck'); raise SystemExit(3)"]
    daemon = daemons.start(
        "pool", program, account=None, environment=os.environ, cwd=tmp_path, output=tmp_path / "out", logs=tmp_path
    )
    with pytest.raises(daemons.SiteError, match=r"pool ended with status 3(?s:.*)no such luck"):
        daemons.wait_until(daemon.said_ready, what="it", deadline_s=30, daemons=[daemon])
    daemon.close()


def test_waiting_has_a_deadline_and_a_daemon_an_end(tmp_path: Path) -> None:
    daemon = daemons.start(
        "pool", SLEEPER, account=None, environment=os.environ, cwd=tmp_path, output=tmp_path / "out", logs=tmp_path
    )
    assert daemons.wait_until(daemon.said_ready, what="it", deadline_s=30, daemons=[daemon])
    with pytest.raises(daemons.SiteError, match=r"not within 0\.05 s"):
        daemons.wait_until(lambda: None, what="nothing", deadline_s=0.05, daemons=[daemon])
    assert daemon.stop(signal.SIGTERM, deadline_s=10) == -signal.SIGTERM


@pytest.mark.needs_root
@pytest.mark.parametrize("linger", [True, False])
def test_a_site_is_made_and_leaves_nothing(linger: bool) -> None:
    with Site.open("test", linger=linger) as site:
        names = [account.name for account in site.accounts.values()]
        assert site.installed is not None
        sudoers, directory = site.installed.sudoers, site.layout.root
        assert sudoers.exists()
        alice, bob = site.users["alice"], site.users["bob"]
        assert site.run_as(alice, ["/usr/bin/id", "-u"]).stdout.strip() == str(alice.uid)
        assert site.run_as(bob, ["/bin/cat", str(alice.proxy)]).returncode != 0
        site.start_pool()
        assert site.ask(alice, "q") == []
    assert site.left == []
    assert not sudoers.exists()
    assert not directory.exists()
    assert not {entry.pw_name for entry in pwd.getpwall()} & set(names)


@pytest.mark.needs_root
def test_what_a_killed_site_leaves_is_removed_by_the_next() -> None:
    program = (
        "import os, signal\nfrom demo.site import Site\nwith Site.open('test') as site:\n"
        "    site.start_pool()\n    print(site.layout.root, site.installed.sudoers, *"
        "[a.name for a in site.accounts.values()], flush=True)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=runtime.ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    directory, sudoers, *names = done.stdout.split()
    uids = [pwd.getpwnam(name).pw_uid for name in names]
    assert accounts.processes_of(uids)
    assert Path(sudoers).exists()
    assert any(directory in what for what in leftovers.remove_abandoned())
    assert accounts.processes_of(uids) == {}
    assert not Path(directory).exists()
    assert not Path(sudoers).exists()
    assert not {entry.pw_name for entry in pwd.getpwall()} & set(names)
