"""A site whose pilot is an ordinary account with sub-uids: each job at one of its own, without glexec."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.site import Site
from pilot.leases import parse_ranges
from tests.e2e.conftest import STARTD_KNOBS
from tests.e2e.e2e_jobs import Jobs

pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.timeout(300),
    pytest.mark.needs_userns,
]


@pytest.fixture(scope="module")
def jobs() -> Iterator[Jobs]:
    with Site.open("test", linger=True) as site:
        site.start_pool()
        site.start_startd(**STARTD_KNOBS, SAILPLANE_SWITCH="userns")
        yield Jobs(site)
        site.stop()
        assert site.left == []
        assert processes_at(sub_uids(site)) == []
        assert site.switch_log() == []


def sub_uids(site: Site) -> range:
    """Of the pilot's account."""
    pilot = site.accounts["pilot"]
    first, count = parse_ranges(Path("/etc/subuid").read_text(), [pilot.name], pilot.uid)[0]
    return range(first, first + count)


def processes_at(uids: range) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and entry.stat().st_uid in uids:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def segments_of(uids: range) -> list[str]:
    """The host's segments of shared memory that such a uid owns or has made."""
    rows = [line.split() for line in Path("/proc/sysvipc/shm").read_text().splitlines()]
    owner, maker = rows[0].index("uid"), rows[0].index("cuid")
    return [row[1] for row in rows[1:] if int(row[owner]) in uids or int(row[maker]) in uids]


def nothing_left(jobs: Jobs) -> None:
    jobs.until("no process at a sub-uid", lambda: not processes_at(sub_uids(jobs.site)))
    jobs.until("no sandbox", lambda: not jobs.sandboxes())


def test_each_job_has_a_sub_uid_of_its_own_also_without_a_proxy(jobs: Jobs) -> None:
    script = (
        "id -u; id -g; id -G; echo $USER; echo $HOME; pwd; awk '/^Cap(Eff|Prm)|^NoNew/ {print $2}' /proc/self/status"
    )
    ids = [jobs.submit("alice", script), jobs.submit("bob", script, x509userproxy="")]
    uids = set()
    for role, job in zip(("alice", "bob"), ids, strict=True):
        jobs.done(job)
        uid, gid, groups, user, home, cwd, permitted, effective, no_new = jobs.fetch(role, job)["out"].decode().split()
        assert int(uid) in sub_uids(jobs.site)
        assert (gid, groups, user, home) == (uid, gid, f"userns-{uid}", cwd)
        assert (int(permitted, 16), int(effective, 16), no_new) == (0, 0, "1")
        uids.add(uid)
    assert len(uids) == 2
    nothing_left(jobs)


def run_while_the_hosts_lists_stay(jobs: Jobs, script: str) -> list[str]:
    """What a job printed during which the host's lists of accounts were not replaced, as another test's may be: the
    kernel takes a mount away whose name is renamed over elsewhere."""
    lists = (Path("/etc/passwd"), Path("/etc/group"))
    for _ in range(10):
        before = [path.stat().st_ino for path in lists]
        job = jobs.submit("alice", script)
        assert jobs.done(job)["exit_code"] != 0, "what the last ls looks for is not there"
        if before == [path.stat().st_ino for path in lists]:
            return jobs.fetch("alice", job)["out"].decode().splitlines()
    pytest.fail("the host's lists of accounts change all the time")


def test_a_job_finds_its_account_and_the_hosts_in_the_lists(jobs: Jobs) -> None:
    script = """
id -un; id -gn; getent passwd $(id -u) | cut -d: -f1,7; grep -c ^root: /etc/passwd; ls -l /etc/passwd | cut -c1-10
for file in /etc/passwd /etc/group; do
    (echo "#$(id -un)" >>$file) 2>/dev/null && echo wrote
    chmod 666 $file 2>/dev/null && echo changed
done
python3 -c 'import os, pwd; print(pwd.getpwuid(os.getuid()).pw_name)'; ls /proc/passwd /proc/group 2>/dev/null
"""
    lines = run_while_the_hosts_lists_stay(jobs, script)
    assert len(lines) == 6, lines
    name, group, entry, roots, mode, again = lines
    assert name.startswith("userns-")
    assert (group, entry, roots, mode, again) == (name, f"{name}:/bin/sh", "1", "-rw-r--r--", name)
    for host in Path("/etc/passwd"), Path("/etc/group"):
        assert name not in host.read_text()
        assert host.stat().st_mode & 0o777 == 0o644
    nothing_left(jobs)


def test_exit_codes_and_signals_are_exact(jobs: Jobs) -> None:
    codes, signals = (0, 1, 127, 201, 202, 203, 204, 255), (1, 9, 11, 15)
    exits = jobs.submit_many("alice", [f"exit {code}" for code in codes])
    kills = jobs.submit_many("bob", [f"kill -{number} $$; sleep 60" for number in signals])
    assert [jobs.done(job)["exit_code"] for job in exits] == list(codes)
    assert [jobs.done(job)["exit_signal"] for job in kills] == list(signals)


def test_files_come_and_go(jobs: Jobs) -> None:
    jobs.site.put(jobs.user("alice"), "given.txt", b"given")
    job = jobs.submit("alice", "mkdir d; cp given.txt d/made; chmod 700 d", transfer_input_files="given.txt",
                      transfer_output_files="d/made")  # fmt: skip
    jobs.done(job)
    assert jobs.fetch("alice", job)["made"] == b"given"
    nothing_left(jobs)


def test_the_pilot_pid_1_and_another_job_are_out_of_reach(jobs: Jobs) -> None:
    victim = jobs.submit("alice", "echo secret >mine.txt; sleep 300")
    jobs.wait_for(victim, "running")
    jobs.until("the victim's sleep", lambda: len(processes_at(sub_uids(jobs.site))) >= 2)
    pilot = jobs.site.layout.pilot
    others = " ".join(map(str, [*processes_at(sub_uids(jobs.site)), *jobs.pids_of("python")]))
    script = f"""
cat {jobs.site.layout.pilot_proxy} {pilot}/tokens.d/startd.token {pilot}/log/StartLog 2>/dev/null
cat {jobs.site.layout.execute}/*/s/*/mine.txt /proc/1/environ /proc/1/maps 2>/dev/null
ls /proc/1/fd {pilot}/run {jobs.site.layout.execute} /var/tmp/sailplane-userns-* 2>/dev/null
for pid in {others}; do [ $pid -gt 9 ] && kill -0 $pid 2>/dev/null && echo reached $pid; done
kill -9 1 2>/dev/null && echo killed 1; kill -STOP 1 2>/dev/null && echo stopped 1
echo end
"""
    assert jobs.output("bob", script).split() == ["end"]
    assert jobs.rows()[victim]["state"] == "running"
    jobs.remove("alice", victim)
    nothing_left(jobs)


def test_a_removed_job_is_gone_with_all_that_it_daemonised(jobs: Jobs) -> None:
    script = """
trap '' TERM HUP INT
for i in 1 2 3; do setsid sh -c 'trap "" TERM; (setsid sleep 300 &) ; sleep 300' & done
touch started; while :; do sleep 1; done
"""
    job = jobs.submit("alice", script)
    jobs.wait_for(job, "running")
    jobs.until("its tree", lambda: len(processes_at(sub_uids(jobs.site))) >= 8)
    jobs.remove("alice", job)
    nothing_left(jobs)


def test_what_a_job_leaves_in_the_background_ends_with_it(jobs: Jobs) -> None:
    jobs.done(jobs.submit("bob", "(setsid sleep 300 >/dev/null 2>&1 &) ; exit 0"))
    nothing_left(jobs)


def test_a_killed_starter_leaves_nothing(jobs: Jobs) -> None:
    job = jobs.submit("alice", "echo x >file; chmod 000 file; sleep 300")
    jobs.wait_for(job, "running")
    jobs.until("its sleep", lambda: len(processes_at(sub_uids(jobs.site))) >= 2)
    (starter,) = jobs.starters()
    jobs.kill(starter)
    jobs.wait_for(job, "idle", "running")
    jobs.remove("alice", job)
    nothing_left(jobs)


def test_ipc_is_the_jobs_own_and_its_files_elsewhere_go_with_it(jobs: Jobs) -> None:
    names = [f"{place}/sptest-litter-{os.getpid()}" for place in ("/tmp", "/var/tmp", "/dev/shm")]
    bounded = "awk '/Max processes/ {print $3}' /proc/self/limits"
    litter = f"for file in {' '.join(names)}; do echo x >$file; done"
    script = f"ipcmk -M 4096 >&2; grep -c . /proc/sysvipc/shm; {bounded}; {litter}"
    job = jobs.submit("alice", script)
    jobs.done(job)
    assert jobs.fetch("alice", job)["out"] == b"2\n8192\n"  # four times SAILPLANE_MAX_PROCESSES
    assert segments_of(sub_uids(jobs.site)) == []
    assert [name for name in names if Path(name).exists()] == []
    nothing_left(jobs)


def test_what_a_job_sees_at_a_sub_uid(jobs: Jobs) -> None:
    """The parts that hang on the sandbox's owner: the ad kept up to date, the command after it, chirp's cookie."""
    script = (
        "until grep -q JobState .update.ad; do sleep 0.05; done; stat -c %a .chirp.config; cat .chirp.config; exit 3"
    )
    job = jobs.submit(
        "alice", script, x509userproxy="", **{"+PostCmd": '"/bin/cp"', "+PostArguments": '".job.ad copy"'}
    )
    assert jobs.done(job)["exit_code"] == 3
    fetched = jobs.fetch("alice", job)
    mode, host, port, cookie = fetched["out"].decode().split()
    assert (mode, host) == ("600", "127.0.0.1")
    assert b"ClusterId" in fetched["copy"]
    assert int(port) > 0
    assert cookie not in jobs.log("StarterLog")
    nothing_left(jobs)
