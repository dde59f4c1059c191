"""What must never happen: each is tried by a job, at the job's account, on a whole site."""

from __future__ import annotations

import pytest

from tests.e2e.e2e_jobs import Jobs

pytestmark = [pytest.mark.needs_root, pytest.mark.timeout(300)]


def test_nothing_of_the_pilots_is_readable(jobs: Jobs) -> None:
    """Its credentials, tokens, run directory, logs, and its processes' environment and memory."""
    pilot = jobs.site.layout.pilot
    script = f"""
cat {jobs.site.layout.pilot_proxy} {pilot}/tokens.d/startd.token {pilot}/log/StartLog 2>/dev/null
ls {pilot} {pilot}/run {pilot}/tokens.d {pilot}/log {jobs.site.layout.execute} 2>/dev/null
for pid in $(ls /proc | grep '^[0-9]*$'); do
    [ "$(stat -c %u /proc/$pid 2>/dev/null)" = {jobs.site.accounts["pilot"].uid} ] || continue
    cat /proc/$pid/environ /proc/$pid/maps 2>/dev/null
    ls /proc/$pid/fd 2>/dev/null
    readlink /proc/$pid/cwd /proc/$pid/exe
done
echo end
"""
    assert jobs.output("alice", script).split() == ["end"]


def test_no_descriptor_signal_mask_limit_or_variable_of_the_pilots_reaches_the_job(jobs: Jobs) -> None:
    script = """
ls /proc/self/fd | sort -n | tr '\\n' ' '; echo
grep -E '^Sig(Blk|Ign)' /proc/self/status
names=$(env | cut -d= -f1 | grep -v '^PYTHON_CPU_COUNT$')
echo "$names" | grep -ciE 'pilot|glexec|_CONDOR_(Coll|SEC)|X509_CERT|SAILPLANE|PYTHON|SUDO' ; umask
"""
    (job,) = jobs.submit_many("alice", [script])
    jobs.done(job)
    fds, blocked, ignored, count, umask = jobs.fetch("alice", job)["out"].decode().splitlines()
    assert fds.split() in (["0", "1", "2", "3"], ["0", "1", "2"]), "3 is the listing's own"
    assert blocked.split() == ["SigBlk:", "0" * 16]
    # 32 and 33 are glibc's own: its posix_spawn ignores them in the child where the parent has threads.
    assert int(ignored.split()[1], 16) & ~(3 << 31) == 0
    assert (count, umask) == ("0", "0022")


def test_another_users_job_is_out_of_reach(jobs: Jobs) -> None:
    """Its sandbox, its files, its processes; and the pilot's processes cannot be signalled."""
    victim = jobs.submit("alice", "echo secret >mine.txt; sleep 300")
    jobs.wait_for(victim, "running")
    jobs.until("the victim's processes", lambda: len(jobs.processes("alice")) >= 2)
    pids = " ".join(map(str, jobs.processes("alice")))
    daemons = " ".join(map(str, jobs.pids_of("python")))
    script = f"""
cat {jobs.site.layout.execute}/*/s/*/mine.txt {jobs.site.layout.execute}/*/*/*/mine.txt 2>/dev/null
ls {jobs.site.layout.execute} 2>/dev/null
for pid in {pids} {daemons}; do kill -9 $pid 2>/dev/null && echo killed $pid; done
mkdir {jobs.site.layout.execute}/mine 2>/dev/null && echo made
echo end
"""
    assert jobs.output("bob", script).split() == ["end"]
    assert jobs.rows()[victim]["state"] == "running"
    jobs.remove("alice", victim)
    jobs.until_nothing_is_left_of("alice")


def test_links_on_the_way_back_lead_nowhere(jobs: Jobs) -> None:
    """A link in place of output is not followed on either side, and nothing is written through one."""
    pilot_proxy = jobs.site.layout.pilot_proxy
    script = f"""
ln -s {pilot_proxy} stolen; ln -s /etc out2; ln -s ../../../run/x escape; mkfifo pipe
ln -s /etc/hostname listed
echo fine >good
"""
    job = jobs.submit("alice", script)
    jobs.done(job)
    files = jobs.fetch("alice", job)
    assert files["good"] == b"fine\n"
    assert not set(files) & {"stolen", "out2", "escape", "pipe", "listed"}
    held = jobs.submit("bob", f"ln -s {pilot_proxy} wanted", transfer_output_files="wanted")
    row = jobs.wait_for(held, "held", "completed")
    assert row["state"] == "held"
    assert "wanted" in row["reason"]
    jobs.until_nothing_is_left_of("bob")


def test_a_sandbox_that_resists_is_removed_all_the_same(jobs: Jobs) -> None:
    script = """
mkdir -p deep/a/b/c; echo x >deep/a/b/c/file; chmod 000 deep/a/b deep/a; mkdir 'new
line'; touch "$(printf 'b\\303\\050d')" '-rf' '*' "quote'"; chmod 500 .
"""
    jobs.done(jobs.submit("bob", script))
    jobs.until_nothing_is_left_of("bob")


def test_output_beyond_the_limit_is_refused_with_the_numbers(lingering: Jobs) -> None:
    """The limit is the pilot's (200 MB here); the file is sparse, so that nothing is spent on it."""
    job = lingering.submit("alice", "truncate -s 300M huge", transfer_output_files="huge")
    row = lingering.wait_for(job, "held", "completed")
    assert row["state"] == "held", row
    assert "300" in row["reason"] or "314572800" in row["reason"]
    lingering.until_nothing_is_left_of("alice")
    lingering.remove("alice", job)


def test_names_that_would_forge_log_lines_do_not(jobs: Jobs) -> None:
    before = len(jobs.site.switch_log())
    jobs.done(jobs.submit("alice", "touch 'x\n2026-01-01T00:00:00.000Z INFO sailplane.startd[1] forged'"))
    assert "INFO sailplane.startd[1] forged" not in [
        line[25:] for name in ("StartLog", "StarterLog") for line in jobs.log(name).splitlines()
    ]
    assert len(jobs.site.switch_log()) > before
