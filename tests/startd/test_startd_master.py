"""A startd under a master: what it is left, what it tells, how it ends. The master is the test, or a child of it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import attrs
import pytest
import trio
from classad2 import ClassAd

from cedar.claims import ClaimId
from cedar.client import Negotiate, Resume, connect
from cedar.codec import Reader
from cedar.commands import Command
from cedar.errors import PeerFault, Refused
from cedar.inheritance import COOKIE, PRIVATE, PUBLIC, usable
from cedar.server import Request, Served, Server, ServerPolicy
from cedar.sessions import Session, SessionTable
from cedar.sinful import Sinful
from startd.lifetime import Facts, Limits, Wish, decide
from startd.master import Master
from tests.cedar.passingport import SharedPort

INFO = '[Encryption="YES";Integrity="YES";CryptoMethods="AES"]'
SECRET = "5ec2e7" * 8
CLAIM = ClaimId.parse(f"session-of-the-test#{INFO}{SECRET}")
CONFIG = """\
LOCAL_DIR = {here}
LOG = $(LOCAL_DIR)/log
LOCK = $(LOCAL_DIR)/lock
COLLECTOR_HOST =
NETWORK_INTERFACE = 127.0.0.1
SAILPLANE_SWITCH = none
NUM_CPUS = 2
STARTD.NUM_CPUS = 1
OTHER.NUM_CPUS = 3
STARTD_NOT_RESPONDING_TIMEOUT = 10
SAILPLANE_MIN_FREE_DISK = 0
{more}
"""
WITHIN_S = 60.0
Child = subprocess.Popen[bytes]


async def until(holds: Callable[[], object]) -> None:
    with trio.fail_after(WITHIN_S):
        while not holds():  # noqa: ASYNC110 other processes have no events
            await trio.sleep(0.02)


def start(argv: list[str], environment: dict[str, str], here: Path, fds: Sequence[int] = ()) -> Child:
    """With the mask of signals that a master leaves to its children: everything blocked."""
    before = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    try:
        return subprocess.Popen(argv, env=environment, pass_fds=fds, cwd=here, stdout=subprocess.PIPE)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@attrs.define(eq=False)
class Parent:
    """A master's port and what it heard."""

    here: Path
    sessions: SessionTable
    address: str = ""
    heard: list[tuple[int, Reader]] = attrs.field(factory=list)

    def told(self, command: Command) -> list[Reader]:
        return [reader for heard, reader in self.heard if heard == command]

    def config(self, more: str = "") -> Path:
        path = self.here / "condor_config"
        path.write_text(CONFIG.format(here=self.here, more=more))
        return path

    @asynccontextmanager
    async def startd(
        self, *options: str, more: str = "", endpoint: socket.socket | None = None, extra: Mapping[str, str] = {}
    ) -> AsyncIterator[tuple[Child, int]]:
        """Started as a master does it: a listening socket and both variables. Gives the port, too."""
        for name in ("log", "lock"):
            (self.here / name).mkdir(exist_ok=True)
        with (
            socket.create_server(("127.0.0.1", 0)) as listener,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        ):
            fds = [listener.fileno(), udp.fileno()]
            sockets = f"1 {fds[0]}*4*0* 2 {fds[1]}*4*0*"
            if endpoint is not None:
                fds.append(endpoint.fileno())
                sockets = f"SharedPort:{endpoint.getsockname()}*{fds[2]}*4*0*"
            environment = {
                "PATH": os.environ["PATH"],
                "CONDOR_CONFIG": str(self.config(more)),
                PUBLIC: f"{os.getpid()} {self.address} 0 {sockets} 0",
                PRIVATE: f" SessionKey:{CLAIM.text}",
                **extra,
            }
            process = start([sys.executable, "-m", "startd.main", *options], environment, self.here / "log", fds)
            port = listener.getsockname()[1]
        try:
            yield process, port
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()

    def log(self) -> str:
        path = self.here / "log" / "StartLog"
        return path.read_text() if path.exists() else ""


def session() -> Session:
    found = usable(CLAIM, "condor@child")
    assert found is not None
    found.level = "DAEMON"
    return found


@asynccontextmanager
async def parent(here: Path) -> AsyncIterator[Parent]:
    sessions = SessionTable()
    sessions.add(session())
    mine = Parent(here, sessions)

    def hear(command: Command) -> Callable[[Request], Awaitable[None]]:
        async def heard(request: Request) -> None:
            mine.heard.append((command, await request.stream.get()))

        return heard

    table = {command: Served("DAEMON", hear(command)) for command in (Command.CHILDALIVE, Command.SET_READY)}
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        mine.address = f"<127.0.0.1:{listeners[0].socket.getsockname()[1]}?noUDP>"
        await nursery.start(Server(table, sessions, ServerPolicy(None, "x")).serve, listeners)
        yield mine
        nursery.cancel_scope.cancel()


async def say(port: int, command: Command, *items: int) -> None:
    """As the master says it, by the session that both know."""
    stream = await connect(
        Sinful("127.0.0.1", port, {}), command, Resume(session()), subsystem="MASTER", deadline_s=WITHIN_S
    )
    async with stream:
        await stream.put(*items)


async def ended(process: Child) -> int:
    await until(lambda: process.poll() is not None)
    return process.returncode


async def test_it_takes_what_it_is_left_tells_of_itself_and_ends_when_told(tmp_path: Path) -> None:
    async with parent(tmp_path) as mine, mine.startd("-f") as (process, port):
        await until(lambda: mine.told(Command.SET_READY))
        ad = mine.told(Command.SET_READY)[0].ad()
        assert (ad["DaemonPID"], ad["DaemonState"]) == (process.pid, "Ready")
        await until(lambda: len(mine.told(Command.CHILDALIVE)) > 1)  # again and again
        first = mine.told(Command.CHILDALIVE)[0]
        assert first.int() == process.pid
        assert first.int() in (10, 11)  # seconds from now on; a tenth is added at most
        assert first.real() == 0.0
        first.end()
        written = (tmp_path / "log" / ".startd_address").read_text()
        assert written.startswith(f"<127.0.0.1:{port}?noUDP>\n$CondorVersion: ")

        assert await total_cpus(Sinful("127.0.0.1", port, {})) == 1  # STARTD.NUM_CPUS goes before NUM_CPUS
        own = children(process.pid)
        assert own
        assert not any(SECRET in environment_of(pid) for pid in (process.pid, *own))
        assert not any("CONDOR_INHERIT=" in environment_of(pid) for pid in own)

        await say(port, Command.RAISESIGNAL, signal.SIGHUP)
        await until(lambda: "settings read again" in mine.log())
        await say(port, Command.RAISESIGNAL, signal.SIGTERM)
        assert await ended(process) == 0
        assert not (tmp_path / "log" / ".startd_address").exists()
        assert "shutting down gracefully" in mine.log()


async def test_behind_a_shared_port(tmp_path: Path) -> None:
    """The master hands down the socket; its name and the port's own address make ours."""
    cookie = "cookie-of-the-test"
    (tmp_path / cookie).mkdir()
    port = SharedPort(tmp_path / cookie)
    async with parent(tmp_path) as mine, trio.open_nursery() as nursery:
        await nursery.start(port.run)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as place:
            place.bind(str(tmp_path / cookie / "startd_1_2"))
            place.listen()
            (tmp_path / "lock").mkdir()
            ad = f'MyType = "SharedPort"\nMyAddress = "<127.0.0.1:{port.port}?noUDP&alias=here>"\n'
            (tmp_path / "lock" / "shared_port_ad").write_text(ad)
            extra = {COOKIE: str(tmp_path / cookie)}
            async with mine.startd("-f", "-sock", "startd", endpoint=place, extra=extra) as (process, _port):
                await until(lambda: mine.told(Command.SET_READY))
                written = (tmp_path / "log" / ".startd_address").read_text().partition("\n")[0]
                assert written == f"<127.0.0.1:{port.port}?alias=here&noUDP&sock=startd_1_2>"
                assert await total_cpus(Sinful.parse(written)) == 1
                assert port.asked == ["startd_1_2"]
                shown = [environment_of(pid) for pid in (process.pid, *children(process.pid))]
                assert len(shown) > 1
                assert not any(cookie in text for text in shown)
        nursery.cancel_scope.cancel()


async def test_who_has_not_the_masters_session_cannot_use_its_name(tmp_path: Path) -> None:
    async with parent(tmp_path) as mine, mine.startd("-f") as (process, port):
        await until(lambda: mine.told(Command.SET_READY))
        guessed = attrs.evolve(session(), key=b"k" * 32)
        address = Sinful("127.0.0.1", port, {})
        stream = await connect(address, Command.RAISESIGNAL, Resume(guessed), subsystem="MASTER", deadline_s=WITHIN_S)
        async with stream:
            await stream.put(int(signal.SIGTERM))
        with pytest.raises((PeerFault, Refused)):
            await connect(
                address, Command.OFF_FAST, Negotiate(methods=("TOKEN",)), subsystem="TOOL", deadline_s=WITHIN_S
            )
        # Nothing follows this one: with a session whose id was overheard anybody could send it.
        async with await connect(address, Command.OFF_FAST, Resume(session()), subsystem="TOOL", deadline_s=WITHIN_S):
            pass
        await until(lambda: "no payload" in mine.log())
        assert process.poll() is None
        assert "shutting down" not in mine.log()


async def test_a_local_name_has_knobs_of_its_own(tmp_path: Path) -> None:
    async with parent(tmp_path) as mine, mine.startd("-f", "-local-name", "OTHER", "-a", "other") as (process, port):
        await until(lambda: mine.told(Command.SET_READY))
        assert "started by the master" in (tmp_path / "log" / "StartLog.other").read_text()
        assert await total_cpus(Sinful("127.0.0.1", port, {})) == 3
        process.send_signal(signal.SIGQUIT)
        assert await ended(process) == 0
        assert "SIGQUIT: shutting down fast" in (tmp_path / "log" / "StartLog.other").read_text()


async def total_cpus(startd: Sinful) -> int:
    stream = await connect(startd, Command.QUERY_STARTD_ADS, Negotiate(authentication="OPTIONAL"), subsystem="TOOL")
    async with stream:
        await stream.put(ClassAd())
        reader = await stream.get()
        assert reader.int() == 1
        return int(reader.ad()["TotalCpus"])


async def test_wrong_settings_are_said_in_the_log_that_a_master_has(tmp_path: Path) -> None:
    async with parent(tmp_path) as mine, mine.startd("-f", more="STARTD_PORT = many") as (process, _port):
        assert await ended(process) == 100
        assert "STARTD_PORT = 'many': allowed is" in mine.log()


# Starts a startd as its child, and says its pid.
_MASTER = """
import subprocess, sys
process = subprocess.Popen(sys.argv[1:])
print(process.pid, flush=True)
process.wait()
"""


async def test_it_ends_with_its_master(tmp_path: Path) -> None:
    """A master that stands between: the startd's parent is neither its child's number nor the test's."""
    for name in ("log", "lock"):
        (tmp_path / name).mkdir()
    async with parent(tmp_path) as mine:
        environment = {"PATH": os.environ["PATH"], "CONDOR_CONFIG": str(mine.config())}
        script = f"import os; os.environ['{PUBLIC}'] = '%d {mine.address} 0 0' % os.getpid()\n{_MASTER}"
        master = start(
            [sys.executable, "-c", script, sys.executable, "-m", "startd.main"], environment, tmp_path / "log"
        )
        assert master.stdout is not None
        with master.stdout:
            startd = int(master.stdout.readline())
        await until(lambda: "started by the master" in mine.log())
        own = children(startd)
        assert own
        master.kill()
        master.wait()
        await until(lambda: not any(map(alive, (startd, *own))))
        assert "has ended: shutting down fast" in mine.log()


def test_variables_that_were_handed_down_from_somewhere_are_no_masters() -> None:
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        environment = {PUBLIC: f"{stranger.pid} <127.0.0.1:1> 0 0", PRIVATE: f"SessionKey:{CLAIM.text}", "A": "b"}
        assert Master.of(environment) is None
        assert environment == {"A": "b"}
    finally:
        stranger.kill()
        stranger.wait()


def test_variables_that_say_nonsense_are_refused_and_gone() -> None:
    environment = {PUBLIC: "one two three", PRIVATE: f"SessionKey:{CLAIM.text}"}
    with pytest.raises(PeerFault):
        Master.of(environment)
    assert environment == {}


def test_a_descriptor_that_is_no_listening_socket_is_not_listened_at(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file, socket.socket() as idle:
        duplicate = os.dup(idle.fileno())
        environment = {PUBLIC: f"{os.getppid()} <127.0.0.1:1> 0 1 {file.fileno()}* 1 {duplicate}* 1 0* 1 99999* 0"}
        master = Master.of(environment)
        assert master is not None
        assert master.listeners == ()
        os.close(master.pidfd)
        os.fstat(file.fileno())  # is still ours


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def environment_of(pid: int) -> str:
    """Empty of one that is gone: a startd asks the machine by commands, too."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/environ").read_bytes().decode()
    return ""


def alive(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_only_an_idle_pilots_end_is_its_masters_too() -> None:
    now = time.time()
    idle = decide(Limits(noclaim_s=10), Facts(now=now, claims=0, idle_s=11))
    assert (idle.wish, idle.for_all) == (Wish.END_GRACEFULLY, True)
    over = decide(Limits(die_at=now - 1), Facts(now=now, claims=0, idle_s=11))
    assert (over.wish, over.for_all) == (Wish.END_GRACEFULLY, False)
