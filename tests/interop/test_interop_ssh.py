"""What goes through condor_ssh_to_job beside a shell, as its manual shows it: scp, sftp, rsync, and X."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from starter import sshprograms
from tests.interop.stockjobs import Job, StockJobs
from tests.userlog import EXECUTING

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]

# Without questions at a terminal; the tool adds what makes the connection.
QUIET = "-o BatchMode=yes"
CONTENT = bytes(range(256)) * 4000
# In the job's session: a client of X that shows the cookie which sshd has left for this display.
X_CLIENT = """
import os, socket, struct, subprocess
display = os.environ["DISPLAY"]
number = int(display.rpartition(":")[2].partition(".")[0])
listed = subprocess.run(["xauth", "list", display], capture_output=True, text=True, check=True).stdout.split()
name, cookie = listed[1].encode(), bytes.fromhex(listed[2])
head = struct.pack("<BxHHHHxx", ord("l"), 11, 0, len(name), len(cookie))
with socket.create_connection(("localhost", 6000 + number)) as screen:
    screen.sendall(head + name + bytes(-len(name) % 4) + cookie)
    print(screen.recv(100).decode())
"""


@pytest.fixture(scope="module")
def job(stock: StockJobs) -> Iterator[Job]:
    """A job of a user who has a login shell, with a file in its sandbox."""
    if not sshprograms.available():
        pytest.skip(f"no {sshprograms.SSHD} on this host (Debian: openssh-server): there are no sessions")
    subprocess.run(["usermod", "--shell", "/bin/sh", stock.site.accounts["alice"].name], check=True)
    stock.site.put(stock.user("alice"), "sent", CONTENT)
    made = stock.one("alice", "echo here >found; mkdir dir; echo deep >dir/deep; sleep 600")
    stock.wait(made, EXECUTING)
    yield made
    stock.act("rm", made)
    stock.until_empty()


def through(stock: StockJobs, *argv: str, typed: str = "") -> str:
    """A tool of the job's owner, in the owner's directory; ``typed``: its input."""
    return stock.pool.tool(*argv, user=stock.user("alice"), deadline_s=60, typed=typed)


def devpts_has_tty_group() -> bool:
    """Where it has not, sshd at an ordinary account may not make a terminal the group's, and ends the session."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return any(where == "/dev/pts" and "gid=5" in options.split(",") for _, where, _, options, *_ in mounts)


@pytest.mark.skipif(not devpts_has_tty_group(), reason="/dev/pts is mounted without gid=5: no terminals by sshd here")
def test_a_person_gets_a_shell_at_a_terminal_in_the_sandbox(stock: StockJobs, job: Job) -> None:
    """With a terminal on both sides: script(1) has one for the tool."""
    typed = "tty; id -u; cat found; echo size $(stty size); exit 7"
    said = through(
        stock, "script", "-qec", f"stty rows 33 cols 99; condor_ssh_to_job {job.id} && echo zero || echo status $?",
        "/dev/null", typed=f"{typed}\n",
    )  # fmt: skip
    lines = [line.strip() for line in said.splitlines()]
    assert any(line.startswith("Welcome to slot1_") for line in lines), said
    assert "/dev/pts/" in said
    assert {str(stock.user("alice").uid), "here", "size 33 99", "status 7"} <= set(lines), said


@pytest.mark.parametrize("protocol", ["", "-O "], ids=["by sftp", "by scp's own protocol"])
def test_scp_brings_and_fetches(stock: StockJobs, job: Job, protocol: str) -> None:
    scp = f"scp {protocol}{QUIET}"
    through(stock, "condor_ssh_to_job", "-ssh", scp, job.id, "sent", "remote:brought")
    through(stock, "condor_ssh_to_job", "-ssh", scp, job.id, "remote:brought", "fetched")
    through(stock, "condor_ssh_to_job", "-ssh", f"{scp} -r", job.id, "remote:dir", ".")
    home = stock.user("alice").home
    assert (home / "fetched").read_bytes() == CONTENT
    assert (home / "dir/deep").read_text() == "deep\n"
    shutil.rmtree(home / "dir")


def test_sftp_has_the_sandbox_as_its_place(stock: StockJobs, job: Job) -> None:
    lines = "pwd\nput sent put-here\nget found got\nls -1\nmkdir made\n"
    stock.site.put(stock.user("alice"), "batch", lines.encode())
    said = through(stock, "condor_ssh_to_job", "-ssh", f"sftp {QUIET} -b batch", job.id)
    assert "put-here" in said.split()
    assert (stock.user("alice").home / "got").read_text() == "here\n"
    sandbox = next(line.rpartition(" ")[2] for line in said.splitlines() if "working directory" in line)
    assert sandbox.startswith(str(stock.site.layout.execute))


@pytest.mark.skipif(shutil.which("rsync") is None, reason="no rsync on this host")
def test_rsync_takes_the_tool_for_its_shell(stock: StockJobs, job: Job) -> None:
    through(stock, "rsync", "-a", "-e", f"condor_ssh_to_job -ssh 'ssh {QUIET}'", f"{job.id}:dir/", "mirrored/")
    through(stock, "rsync", "-a", "-e", f"condor_ssh_to_job -ssh 'ssh {QUIET}'", "sent", f"{job.id}:by-rsync")
    assert (stock.user("alice").home / "mirrored/deep").read_text() == "deep\n"
    said = through(stock, "condor_ssh_to_job", "-ssh", f"ssh {QUIET}", job.id, "cksum <by-rsync; cksum <by-rsync")
    assert len(set(said.splitlines())) == 1
    assert said.split()[1] == str(len(CONTENT))


def test_another_user_gets_no_file(stock: StockJobs, job: Job) -> None:
    bob = stock.user("bob")
    stock.pool.tool(
        "condor_ssh_to_job", "-ssh", f"scp {QUIET}", job.id, "remote:found", "stolen", user=bob, check=False
    )
    assert not (bob.home / "stolen").exists()


@pytest.mark.skipif(shutil.which("xauth") is None, reason="sshd forwards X only where there is xauth")
def test_a_program_of_x_reaches_its_users_screen(stock: StockJobs, job: Job) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.getsockname()[1] - 6000
        assert number > 0
        asked = []

        def screen() -> None:
            client, _ = listener.accept()
            with client:
                asked.append(client.recv(100))
                client.sendall(b"a screen")

        thread = threading.Thread(target=screen, daemon=True)
        thread.start()
        stock.site.put(stock.user("alice"), "client.py", X_CLIENT.encode())
        through(stock, "condor_ssh_to_job", "-ssh", f"scp {QUIET}", job.id, "client.py", "remote:client.py")
        line = ("env", f"DISPLAY=localhost:{number}", "condor_ssh_to_job", "-X", "-ssh", f"ssh {QUIET}", job.id)
        assert through(stock, *line, "python3 client.py") == "a screen\n"
        thread.join(10)
    assert asked[0][:1] == b"l"
    assert b"MIT-MAGIC-COOKIE-1" in asked[0]
    without = ("condor_ssh_to_job", "-ssh", f"ssh {QUIET}", job.id, 'echo "[$DISPLAY]"')
    assert through(stock, *without) == "[]\n"
