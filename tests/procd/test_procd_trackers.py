"""What tells of a family beside descent: cgroups, process events, the sweep of accounts, cookies, the check."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo.accounts import Account
from pilot import logs
from procd.births import MOST_ENDED, Births
from procd.client import ProcdClient
from procd.events import MAX_LOT, Connector, Event, Overrun, connector_works, parse
from procd.facts import Facts
from procd.families import Families
from procd.groups import Group
from procd.lookout import Lookout
from procd.proc import ProcReader, ticks_now
from procd.process import Process, ProcessId
from procd.trackers import Trackers
from tests.procd import world
from tests.procd.hosts import Delegated, delegated
from tests.procd.test_procd_switch import Site, site  # noqa: F401  (the fixture)

# --- births ---------------------------------------------------------------------------------------------------------


def test_who_was_born_and_gone_between_two_looks_is_counted() -> None:
    births = Births()
    births.learn("job", [10])
    births.born(11, 10)
    births.born(12, 11)
    births.ended(11)
    births.learn("job", [10, 12])
    births.ended(12)
    assert births.unseen("job") == 1
    births.forget("job")
    births.born(13, 10)
    births.ended(13)
    assert births.unseen("job") == 0


def test_who_is_found_as_a_zombie_was_seen() -> None:
    births = Births()
    births.learn("job", [10])
    for pid in (11, 12):
        births.born(pid, 10)
        births.ended(pid)
    births.learn("job", [10, 11])
    assert births.unseen("job") == 1
    births.born(12, 10)  # the number is given again: nobody can find the first one any more
    births.learn("job", [12])
    assert births.unseen("job") == 1


def test_the_ended_do_not_pile_up() -> None:
    births = Births()
    births.learn("job", [1])
    for pid in range(2, MOST_ENDED + 100):
        births.born(pid, 1)
        births.ended(pid)
    assert births.unseen("job") == MOST_ENDED + 98
    assert len(births._ended) < 100


def test_families_with_births_or_ends_are_named_once() -> None:
    births = Births()
    births.learn("job", [1])
    births.learn("other", [2])
    births.born(11, 1)
    assert births.stirred() == {"job"}
    births.ended(99)
    assert births.stirred() == set()
    births.ended(2)
    assert births.stirred() == {"other"}


def test_a_number_that_a_stranger_gets_is_a_strangers() -> None:
    births = Births()
    births.learn("job", [10, 11])
    births.born(11, 99)  # the end of the member 11 came before we learnt of it
    births.born(12, 11)
    births.ended(12)
    assert births.unseen("job") == 0


def test_after_a_loss_nothing_is_known_until_the_next_look() -> None:
    births = Births()
    births.learn("job", [10])
    births.lost()
    births.born(11, 10)
    births.ended(11)
    births.learn("job", [10])
    births.born(12, 10)
    births.ended(12)
    assert births.unseen("job") == 1


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 9), st.integers(1, 9)), max_size=60))
def test_births_agrees_with_a_list_of_processes(steps: list[tuple[bool, int, int]]) -> None:
    """Real order of events: a number is free before it is given again."""
    births, alive, unseen = Births(), {1: "job", 2: "other"}, 0
    births.learn("job", [1])
    for is_fork, pid, parent in steps:
        if is_fork and pid not in alive and parent in alive:
            alive[pid] = alive[parent]
            births.born(pid, parent)
        elif not is_fork and pid in alive and pid > 2:
            unseen += alive.pop(pid) == "job"
            births.ended(pid)
    assert births.unseen("job") == unseen


# --- process events -------------------------------------------------------------------------------------------------

needs_events = pytest.mark.skipif(not connector_works(), reason="this kernel gives us no process events")


@needs_events
def test_the_kernel_tells_of_births_and_ends() -> None:
    connector = Connector()
    try:
        child = os.posix_spawn("/bin/true", ["true"], {})
        os.waitpid(child, 0)
        events = connector.lot()
    finally:
        connector.close()
    assert Event(child, os.getpid()) in events
    assert Event(child) in events[events.index(Event(child, os.getpid())) :]


@needs_events
@pytest.mark.needs_root
def test_events_with_the_numbers_of_another_namespace_are_not_wanted() -> None:
    """In a container the events of a listener outside arrive, too."""
    connector = Connector()
    try:
        program = "from procd.events import connector_works; print(connector_works())"
        inside = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", program]
        done = subprocess.run(inside, cwd=world.ROOT, capture_output=True, text=True, check=False)
    finally:
        connector.close()
    assert done.stdout == "False\n", done.stderr


@needs_events
def test_too_many_events_are_an_overrun() -> None:
    connector = Connector()
    try:
        for _ in range(MAX_LOT // 2 + 1):
            os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
        with pytest.raises(Overrun):
            connector.lot()
    finally:
        connector.close()


@given(st.binary(max_size=120))
def test_no_datagram_makes_the_parser_stumble(datagram: bytes) -> None:
    event = parse(datagram)
    assert event is None or event.pid >= 0


@needs_events
async def test_the_newborn_are_members_without_a_look_of_anybody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the CPU of a daemon that nobody in the family waits for is known, although it came and went between two
    looks."""
    monkeypatch.setattr("procd.server.LOOK_EVERY_S", 3600.0)
    burn = "time.process_time() < 0.5"
    program = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        f"    if os.fork() == 0:\n        while {burn}: pass\n"
        "    os._exit(0)\n"
        "os.wait()\nsignal.pause()"
    )
    caplog.set_level(logging.INFO)
    with world.job(held(program)) as job:
        async with world.procd(tmp_path / "s") as client:
            await world.register(client, job)
            await world.until(lambda: "listening" in caplog.text, "process events")
            os.kill(job.pid, signal.SIGUSR1)

            async def burnt() -> bool:
                if "doing without" in caplog.text:
                    pytest.skip("this machine forks so wildly just now that events are lost")
                (family,) = await client.families()  # as of the last look: asks for none
                return family.usage.user_s + family.usage.system_s >= 0.35 and family.usage.processes == 1

            await world.until(burnt, "the daemon's CPU")


@needs_events
async def test_children_that_nobody_saw_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    program = "import os\nfor _ in range(50): os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)\nsignal.pause()"
    caplog.set_level(logging.INFO)
    with world.job(held(program)) as job:
        async with world.procd(tmp_path / "s") as client:
            await world.register(client, job)
            await world.until(lambda: "listening" in caplog.text, "process events")
            os.kill(job.pid, signal.SIGUSR1)

            async def seen() -> bool:
                if "doing without" in caplog.text:
                    pytest.skip("this machine forks so wildly just now that events are lost")
                return (await client.usage("job")).processes_seen >= 51

            await world.until(seen, "51 processes")
            assert (await client.usage("job")).processes_seen == 51


WAIT_FOR_USR1 = "signal.pthread_sigmask(signal.SIG_BLOCK, {10}); signal.sigwait({10})"

# --- cgroups --------------------------------------------------------------------------------------------------------


def held(program: str) -> str:
    """A program that waits for a word, as a job does until it is registered."""
    return f"import signal\n{WAIT_FOR_USR1}\n{program}"


async def let_run(client: ProcdClient, job: world.Job, **options: object) -> None:
    await world.register(client, job, **options)
    os.kill(job.pid, signal.SIGUSR1)


@pytest.fixture
def place() -> Iterator[Delegated]:
    with delegated(None) as made:
        yield made


def groups(place: Delegated) -> list[Path]:
    return [each for each in place.path.glob("sailplane-job-*") if each.is_dir()]


@pytest.mark.needs_root
@pytest.mark.parametrize("seed", range(3))
async def test_a_cgroup_ends_a_family_at_once(tmp_path: Path, place: Delegated, seed: int) -> None:
    with world.job(held(world.HIDE), str(seed), "5") as job:
        async with world.procd(tmp_path / "s", world.settings(SAILPLANE_CGROUP=str(place.path))) as client:
            await let_run(client, job)
            await world.until(lambda: len(job.alive()) >= 3, "a tree")
            [group] = groups(place)
            before = set(job.alive())  # the tree may still grow, and its parents leave
            inside = {int(pid) for pid in (group / "cgroup.procs").read_text().split()}
            assert before & set(job.alive()) <= inside
            stopped = await client.stop("job", deadline_s=60)
            assert (stopped.empty, stopped.route) == (True, "cgroup")
            assert job.alive() == []
            await client.unregister("job")
            assert groups(place) == []


@pytest.mark.needs_root
async def test_a_fork_storm_loses_against_a_cgroup(tmp_path: Path, place: Delegated) -> None:
    with world.job(held(world.STORM)) as job:
        async with world.procd(tmp_path / "s", world.settings(SAILPLANE_CGROUP=str(place.path))) as client:
            await let_run(client, job)
            await world.storming(client)
            stopped = await client.stop("job", deadline_s=60)
            assert (stopped.empty, stopped.route) == (True, "cgroup")


@pytest.mark.needs_root
async def test_a_cgroup_that_is_not_empty_is_no_end(
    tmp_path: Path, place: Delegated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever scans say: the kernel knows."""
    monkeypatch.setattr(Group, "populated", property(lambda group: True))
    with world.job(held(world.SLEEP)) as job:
        async with world.procd(tmp_path / "s", world.settings(SAILPLANE_CGROUP=str(place.path))) as client:
            await let_run(client, job)
            stopped = await client.stop("job", deadline_s=1)
            assert (stopped.empty, stopped.survivors, job.alive()) == (False, (), [])
            monkeypatch.undo()


@pytest.mark.needs_root
async def test_another_accounts_family_costs_no_call_with_a_cgroup(
    tmp_path: Path,
    place: Delegated,
    site: Site,  # noqa: F811
    accounts: Mapping[str, Account],
) -> None:
    uid = accounts["alice"].uid
    with world.job(held(world.HIDE), "2", "4", uid=uid) as job:
        async with world.procd(tmp_path / "s", site.settings(SAILPLANE_CGROUP=str(place.path))) as client:
            await let_run(client, job, credential=site.credential(uid))
            await world.until(lambda: len(job.alive()) >= 2, "a tree")
            [group] = groups(place)
            await client.suspend("job")
            assert (group / "cgroup.events").read_text().split()[-1] == "1"
            await client.resume("job")
            assert (group / "cgroup.freeze").read_text().strip() == "0"
            await client.suspend("job")
            stopped = await client.stop("job", deadline_s=60)
            assert (stopped.empty, stopped.route, stopped.switch_calls) == (True, "cgroup", 0)
            assert job.alive() == []
    assert site.calls == []


@pytest.mark.needs_root
async def test_cpu_of_who_was_not_waited_for_counts_in_a_cgroup(tmp_path: Path, place: Delegated) -> None:
    ignoring = world.BURN.replace("    os.wait()\n", "").replace("import os", "import os, time", 1)
    program = "import signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n" + ignoring
    with world.job(held(program), "8") as job:
        async with world.procd(tmp_path / "s", world.settings(SAILPLANE_CGROUP=str(place.path))) as client:
            await let_run(client, job)

            async def burnt() -> bool:
                usage = await client.usage("job")
                return usage.user_s + usage.system_s >= 0.4 and usage.processes == 1

            await world.until(burnt, "CPU of children that nobody waits for")
            usage = await client.usage("job")
            assert usage.user_s + usage.system_s <= 0.8


@pytest.mark.needs_root
async def test_a_restarted_procd_finds_its_cgroup_again(tmp_path: Path, place: Delegated) -> None:
    knob = {"_CONDOR_SAILPLANE_CGROUP": str(place.path)}
    with world.job(held(world.HIDE), "5", "4") as job:
        with world.daemon(tmp_path / "s", **knob) as (first, _):
            client = await ProcdClient.connect(tmp_path / "s")
            await let_run(client, job)
            first.kill()
            await world.until(lambda: first.poll() is not None, "its end")
        with world.daemon(tmp_path / "s", **knob):
            assert (await client.stop("job", deadline_s=60)).route == "cgroup"
            assert job.alive() == []
            client.close()


@pytest.mark.needs_root
def test_a_launch_that_is_tried_again_comes_into_the_familys_cgroup(place: Delegated) -> None:
    """Else the group would be taken for the whole family, and its end for the family's."""
    families, reader = Families(os.geteuid()), ProcReader()
    trackers = Trackers(families, Facts(cgroup=str(place.path)), logs.get("test"), dedicated=None, isolates=False)
    starter = ProcessId(os.getpid(), world.ticks(os.getpid()))
    roots = [subprocess.Popen([world.PYTHON, "-IS", "-c", world.SLEEP]) for _ in range(2)]
    try:
        for attempt in roots:
            root = ProcessId(attempt.pid, world.ticks(attempt.pid))
            family = families.register("job", root, starter, Lookout(families, reader).survey(root, starter))
            for _ in range(2):  # the same request may come twice
                trackers.place(family, new=True)
            group = trackers.group(family)
            assert group is not None
            assert group.pids() == [attempt.pid]
            attempt.kill()
            attempt.wait()
        trackers.forget(family)
        assert groups(place) == []
    finally:
        for attempt in roots:
            attempt.kill()
            attempt.wait()
        reader.close()


# --- the sweep of accounts ------------------------------------------------------------------------------------------

STRAY = """
import os, sys
if os.fork() == 0:
    os.setsid()
    uid = int(sys.argv[1])
    os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
    os.execv(sys.executable, [sys.executable, "-IS", "-c", "import signal; signal.pause()", sys.argv[2]])
"""


@contextmanager
def stray(account: Account) -> Iterator[int]:
    """A process of an account below process 1, as at or cron would start it."""
    marker = f"sptest-stray-{os.urandom(4).hex()}"
    subprocess.run([world.PYTHON, "-IS", "-c", STRAY, str(account.uid), marker], check=True)
    try:
        while not (found := [pid for pid in world.marked(marker) if world.uid_of(pid) == account.uid]):
            pass
        yield found[0]
    finally:
        for pid in world.marked(marker):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.needs_root
@pytest.mark.parametrize("dedicated", [False, True])
async def test_what_is_no_descendant_is_reported_and_killed_only_at_a_dedicated_account(
    tmp_path: Path,
    site: Site,  # noqa: F811
    accounts: Mapping[str, Account],
    dedicated: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    alice = accounts["alice"]
    knobs = {"SAILPLANE_DEDICATED_ACCOUNTS": r"sptest.*-alice"} if dedicated else {}
    with world.job(world.SLEEP, uid=alice.uid) as job:
        async with world.procd(tmp_path / "s", site.settings(**knobs)) as client:
            await world.register(client, job, credential=site.credential(alice.uid))
            with stray(alice) as pid, caplog.at_level(logging.WARNING):
                stopped = await client.stop("job", deadline_s=60)
                assert stopped.empty
                assert stopped.strays == (() if dedicated else (pid,))
                assert (await client.usage("job")).strays == (0 if dedicated else 1)
                assert (pid in world.marked("sptest-stray-")) != dedicated
                assert f"no descendants, at its account {alice.uid}: {pid}" in caplog.text


@pytest.mark.needs_root
async def test_while_two_jobs_are_at_a_dedicated_account_neither_gets_the_strays(
    tmp_path: Path,
    site: Site,  # noqa: F811
    accounts: Mapping[str, Account],
) -> None:
    alice = accounts["alice"]
    given = site.settings(SAILPLANE_DEDICATED_ACCOUNTS=r"sptest.*-alice")
    with world.job(world.SLEEP, uid=alice.uid) as job, world.job(world.SLEEP, uid=alice.uid) as other:
        async with world.procd(tmp_path / "s", given) as client:
            for name, each in (("job", job), ("other", other)):
                await world.register(client, each, name, credential=site.credential(alice.uid))
            with stray(alice) as pid:
                stopped = await client.stop("job", deadline_s=60)
                assert (stopped.empty, stopped.strays) == (True, (pid,))
                assert world.marked("sptest-stray-") == [pid]
            assert other.alive() == [other.pid]


# --- cookies --------------------------------------------------------------------------------------------------------


def test_orphans_of_dead_starters_are_told_apart_by_their_cookies() -> None:
    def process(pid: int, parent: int, start: int) -> Process:
        return Process(ProcessId(pid, start), parent, "S", 500, 1, 0, 0, 0, 0, 1, 1)

    cookies = {30: "b", 31: "a", 32: "elsewhere"}
    families = Families(500, alike=lambda one, other: False, cookie=cookies.get)
    seen = {pid: process(pid, parent, pid) for pid, parent in ((2, 1), (3, 2), (4, 3), (5, 3), (10, 4), (20, 5))}
    for name, starter, root in (("a", 4, 10), ("b", 5, 20)):
        families.register(name, seen[root].id, seen[starter].id, seen)
        families.starter_died(seen[starter].id)
    for gone in (4, 5, 10, 20):
        del seen[gone]
    seen |= {pid: process(pid, 3, pid) for pid in (30, 31, 32, 33)}
    families.discover(seen)
    members = {name: {each.pid for each in families.get(name).members} - {10, 20} for name in ("a", "b")}
    assert members == {"a": {31, 33}, "b": {30}}, "33 has none: whoever comes first, as before"


async def test_a_cookie_is_read_from_the_environment() -> None:
    reader = ProcReader()
    environment = {"AA": "x" * 100_000, "XSAILPLANE_FAMILY": "no", "SAILPLANE_FAMILY": "act-7"}
    child = subprocess.Popen(["/bin/sleep", "60"], env=environment)  # noqa: ASYNC220 - it starts at once
    try:
        # Popen returns in the middle of the exec, before the new environment is there.
        await world.until(lambda: reader.cookie(child.pid, b"SAILPLANE_FAMILY") == "act-7", "the cookie")
        assert reader.cookie(child.pid, b"FAMILY") is None
    finally:
        child.kill()
        child.wait()
    assert reader.cookie(child.pid, b"SAILPLANE_FAMILY") is None
    reader.close()


# --- without children files, and the check --------------------------------------------------------------------------


async def test_a_family_is_followed_without_children_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("procd.main.ProcReader", lambda: ProcReader(children_files=False))
    with world.job(world.HIDE, "3", "4") as job:
        async with world.procd(tmp_path / "s") as client:
            await world.register(client, job)
            await world.until(lambda: len(job.alive()) >= 2, "a tree")
            assert "no-children-files" in {lack.word for lack in (await client.describe()).degraded}
            assert (await client.usage("job")).processes >= 2
            assert (await client.stop("job", deadline_s=60)).empty
            assert job.alive() == []


async def test_the_check_names_who_walks_have_missed(tmp_path: Path) -> None:
    with world.job("import os, signal\nos.fork(); os.fork()\nsignal.pause()") as job:
        await world.until(lambda: len(job.alive()) == 4, "a tree")
        reader = ProcReader()
        families = Families(os.geteuid())
        lookout = Lookout(families, reader)
        root, starter = ProcessId(job.pid, job.ticks), ProcessId(job.starter_pid, world.ticks(job.starter_pid))
        family = families.register("job", root, starter, lookout.survey(root, starter))
        lookout.look(family)
        members = set(family.members)
        missed = next(identity for identity in members if identity != root)
        del family.members[missed], families._member_of[missed]
        await world.until(lambda: ticks_now() > missed.start_ticks, "a clock tick after its birth")
        assert await lookout.check() == {"job": [missed]}
        assert await lookout.check() == {}
        assert set(family.members) == members
        reader.close()


async def test_procd_says_how_it_works_here(tmp_path: Path) -> None:
    async with world.procd(tmp_path / "s") as client:
        described = await client.describe()
    assert described.routes[-1] == "own"
    assert {"descent", "environment"} <= set(described.trackers)
    assert ("cgroup" in described.trackers) == (described.cgroup is not None)


def test_a_wrong_pattern_ends_the_start(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "procd", "--socket", str(tmp_path / "s")],
        env=os.environ | {"_CONDOR_SAILPLANE_DEDICATED_ACCOUNTS": "slot[", "_CONDOR_SAILPLANE_SWITCH": "none"},
        cwd=world.ROOT, capture_output=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 100
    assert b"regular expression" in done.stderr
