"""What the owner of a running job sees of it with the stock tools."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from demo.daemons import switched
from starter import sshprograms
from tests.interop.stockjobs import Job, StockJobs
from tests.interop.stockpool import StockError
from tests.userlog import EXECUTING, TERMINATED

pytestmark = [pytest.mark.interop, pytest.mark.timeout(170)]


@pytest.fixture(autouse=True)
def empty_queue(stock: StockJobs) -> Iterator[None]:
    """A test that fails leaves the next one a free execution point."""
    yield
    if stock.pool.tool("condor_q", "-af", "ClusterId").strip():
        stock.pool.tool("condor_rm", "-all")
        stock.until_empty()


def test_condor_tail_shows_stdout_stderr_and_listed_files(stock: StockJobs) -> None:
    alice, bob = stock.site.users["alice"], stock.site.users["bob"]
    job = stock.one(
        "alice",
        "seq 1 500; echo trouble >&2; echo part >result; : >empty; ln -s /etc/passwd out; echo x >other; sleep 300",
        transfer_output_files="result, out, empty",
    )
    stock.wait(job, EXECUTING)
    shown = stock.until(lambda: stock.pool.tool("condor_tail", job.id, user=alice, check=False), "what the job wrote")
    assert shown.endswith("\n499\n500\n")
    assert len(shown) == 1024
    assert stock.pool.tool("condor_tail", "-stderr", job.id, user=alice) == "trouble\n"
    assert stock.pool.tool("condor_tail", "-maxbytes", "4", job.id, user=alice) == "500\n"
    assert "part\n" in stock.pool.tool("condor_tail", "-no-stdout", job.id, "result", user=alice)
    stock.pool.tool("condor_tail", "-no-stdout", job.id, "empty", user=alice)
    for name in ("out", "other", "../../x", "/etc/passwd"):
        with pytest.raises(StockError) as refused:
            stock.pool.tool("condor_tail", "-no-stdout", job.id, name, user=alice)
        assert "root:" not in str(refused.value)
    with pytest.raises(StockError):
        stock.pool.tool("condor_tail", job.id, user=bob)
    stock.act("rm", job)
    stock.until_empty()


@pytest.fixture
def alices_shell(stock: StockJobs) -> None:
    """The demo's accounts have none, and then there are no sessions."""
    if not sshprograms.available():
        pytest.skip(f"no {sshprograms.SSHD} on this host (Debian: openssh-server): there are no sessions")
    subprocess.run(["usermod", "--shell", "/bin/sh", stock.site.accounts["alice"].name], check=True)


def ssh(stock: StockJobs, job: Job, command: str, role: str = "alice", *, check: bool = True) -> str:
    """Output of a command given to the job's session."""
    user = stock.site.users[role]
    return stock.pool.tool("condor_ssh_to_job", "-ssh", "ssh -o BatchMode=yes", job.id, command, user=user, check=check)


@pytest.mark.usefixtures("alices_shell")
def test_condor_ssh_to_job_is_a_shell_as_the_jobs_user_in_its_sandbox(stock: StockJobs) -> None:
    job = stock.one("alice", "echo $$ >pid; sleep 300", environment="\"COLOUR='deep blue'\"")
    stock.wait(job, EXECUTING)
    assert {ad["HasSshd"] for ad in stock.slots()} == {True}
    said = ssh(stock, job, 'id -un; cat pid; echo "$COLOUR"; pwd; echo "$_CONDOR_SCRATCH_DIR"').splitlines()
    assert said[0] == stock.site.accounts["alice"].name
    assert said[1].isdigit()
    assert said[2] == "deep blue"
    assert said[3] == said[4]
    assert ssh(stock, job, "exit 7", check=False) == ""
    with pytest.raises(StockError):
        ssh(stock, job, "id -un", role="bob")
    stock.act("rm", job)
    stock.until_empty()


@pytest.mark.usefixtures("alices_shell")
def test_what_a_session_leaves_behind_ends_with_it_and_a_session_with_its_job(stock: StockJobs) -> None:
    uid = stock.site.accounts["alice"].uid
    job = stock.one("alice", "sleep 300")
    stock.wait(job, EXECUTING)
    ssh(stock, job, "setsid sleep 4711 >/dev/null 2>&1 </dev/null & echo")
    stock.until(lambda: True if "sleep 4711" not in commands(uid) else None, "the rest of the session to end")
    with subprocess.Popen(
        ["condor_ssh_to_job", job.id, "sleep 4712"],
        env=stock.pool.environment, cwd=stock.site.users["alice"].home, stdin=subprocess.DEVNULL,
        **switched(stock.site.accounts["alice"]),
    ) as tool:  # fmt: skip
        stock.until(lambda: True if "sleep 4712" in commands(uid) else None, "the session")
        stock.act("rm", job)
        tool.wait(60)
    stock.until_empty()
    stock.until(lambda: None if "sleep" in commands(uid) else True, "everything to end")


@pytest.mark.usefixtures("alices_shell")
def test_a_session_keeps_the_slot_after_the_job_has_ended(stock: StockJobs) -> None:
    go = stock.user("alice").home / "go"
    job = stock.one(
        "alice", f"while [ ! -e {go} ]; do sleep 0.1; done; echo ended >ended", transfer_output_files="ended"
    )
    stock.wait(job, EXECUTING)
    said = ssh(
        stock, job, f"touch {go}; while [ ! -e ended ]; do sleep 0.1; done; sleep 3; cat ended; echo more >>ended"
    )
    assert said == "ended\n"
    stock.wait(job, TERMINATED)
    assert (job.home / "ended").read_text() == "ended\nmore\n"
    stock.until_empty()


def commands(uid: int) -> str:
    """Command lines of an account's processes, but for the tool's own."""
    return subprocess.run(["ps", "-o", "args=", "-u", str(uid)], capture_output=True, text=True).stdout.replace(
        "condor_ssh_to_job", ""
    )
