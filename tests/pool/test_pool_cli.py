"""The `sailplane` command and the daemon as processes; and `fetch` against names and links that lead elsewhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define, field

from cedar.sinful import Sinful
from demo import grid
from pool import cli, cli_ask, cli_fetch
from pool import messages as m
from tests.pool.fake_ep import FakeEP

READY_S = 60.0
ROOT = Path(__file__).resolve().parents[2]


@define
class Daemon:
    """A pool as a process, with a settings file of its own, and the command beside it."""

    place: Path
    knobs: dict[str, str] = field(factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def config(self) -> Path:
        return self.place / "sailplane.conf"

    def configure(self, **more: str) -> None:
        self.config.write_text("".join(f"{name} = {value}\n" for name, value in (self.knobs | more).items()))

    def start(self) -> None:
        self.configure()
        reading, writing = os.pipe()
        command = [sys.executable, "-m", "pool", "--config", str(self.config), "--ready-fd", str(writing)]
        self.process = subprocess.Popen(command, pass_fds=(writing,), env=self.environ)
        os.close(writing)
        with os.fdopen(reading, "rb") as ready:
            assert ready.read() == b"ready\n"

    @property
    def environ(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(self.place)}

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(READY_S)

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pool.cli", "--config", str(self.config), *words]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=self.place, env=self.environ, timeout=60, check=False
        )

    async def say(self, *words: str) -> subprocess.CompletedProcess[str]:
        return await trio.to_thread.run_sync(self.call, *words)

    @property
    def address(self) -> Sinful:
        return Sinful.parse((self.place / "pool" / "collector_address").read_text().splitlines()[0])


@pytest.fixture
def daemon(tmp_path: Path, test_grid: grid.Grid) -> Iterator[Daemon]:
    knobs = {
        "LOCAL_DIR": str(tmp_path),
        "TRUST_DOMAIN": "pool.test",
        "UID_DOMAIN": "pool.test",
        "SAILPLANE_CERTIFICATES_DIR": str(test_grid.certificates_dir),
    }
    made = Daemon(tmp_path, knobs)
    yield made
    if made.process is not None:
        made.process.kill()
        made.process.wait()


async def test_from_submit_to_fetch(daemon: Daemon, test_grid: grid.Grid) -> None:
    place = daemon.place
    (place / "run.sh").write_text("#!/bin/sh\n")
    (place / "data").mkdir()
    (place / "data" / "a.txt").write_text("hello ")
    (place / "b.txt").write_text("world")
    grid.write_private(place / "px", grid.make_proxy(test_grid.user("Alice Adams")).pem)
    (place / "job.sub").write_text(
        "executable = run.sh\ntransfer_input_files = data, b.txt\noutput = out.$(Process)\nerror = err.$(Process)\n"
        f"x509userproxy = {place}/px\nqueue 2\n"
    )
    await trio.to_thread.run_sync(daemon.start)
    done = await daemon.say("submit", "job.sub", "--json")
    assert done.returncode == 0, done.stderr
    submitted = json.loads(done.stdout)
    assert submitted["jobs"] == ["1.0", "1.1"]
    async with FakeEP(daemon.address, place / "pool" / "tokens.d").running() as ep:
        waited = await daemon.say("wait", "1", "--timeout", "30", "--json")
        assert waited.returncode == 0, waited.stderr
        assert [(row["id"], row["state"], row["exit_code"]) for row in json.loads(waited.stdout)] == [
            ("1.0", "completed", 0),
            ("1.1", "completed", 0),
        ]
        slots = json.loads((await daemon.say("status", "--json")).stdout)
        assert slots[0]["name"] == "slot1@fake"
        assert "slot1@fake" in (await daemon.say("status")).stdout
        assert ep.starters[0].sink.order == ["px", "data", "data/a.txt", "b.txt", "run.sh"]
    fetched = await daemon.say("fetch", "1", "--to", "results", "--json")
    assert fetched.returncode == 0, fetched.stderr
    assert (place / "results" / "out.0").read_text() == "WORLDHELLO "
    assert sorted(path.name for path in (place / "results").iterdir()) == ["err.0", "err.1", "out.0", "out.1"]
    (run,) = json.loads((await daemon.say("history", "1.0", "--json")).stdout)
    assert (run["outcome"], run["startd"], run["pid"]) == ("completed", "fake", 4711)
    assert (await daemon.say("q", "--json")).stdout.strip() == "[]"
    assert len(json.loads((await daemon.say("q", "--done", "--json")).stdout)) == 2
    assert (await daemon.say("rm", "1")).stdout == "2 removed.\n"
    assert await trio.to_thread.run_sync(daemon.stop) == 0


def test_words_and_exit_codes(
    daemon: Daemon, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bad input: each has a message that says what and what to do."""
    place = daemon.place
    monkeypatch.chdir(place)

    def call(*words: str) -> tuple[int, str, str]:
        code = cli.main(["--config", str(daemon.config), *words])
        said = capsys.readouterr()
        return code, said.out, " ".join(said.err.split())

    (place / "good.sub").write_text("executable = run.sh\nqueue\n")
    (place / "bad.sub").write_text("executable = run.sh\nrubbish\nqueue\n")
    (place / "missing.sub").write_text("executable = run.sh\ntransfer_input_files = nowhere.txt\nqueue\n")
    (place / "proxy.sub").write_text("executable = run.sh\nx509userproxy = none.pem\nqueue\n")
    (place / "memory.sub").write_text("executable = run.sh\nrequest_memory = lots\nqueue\n")
    (place / "run.sh").write_text("#!/bin/sh\n")
    daemon.configure()
    code, _, away = call("q")
    assert code == cli_ask.TRY_AGAIN
    assert "no pool answers at" in away
    assert "sailplane-pool" in away
    daemon.start()
    for words, expected, text in [
        (("submit", "bad.sub"), 1, "bad.sub, line 2: 'rubbish'"),
        (("submit", "none.sub"), 1, "cannot read the submit file none.sub: No such file"),
        (("submit", "missing.sub"), 1, "nowhere.txt cannot be used: No such file"),
        (("submit", "proxy.sub"), 1, "cannot read the proxy none.pem: No such file"),
        (("submit", "memory.sub"), 1, "RequestMemory = lots: must be a number of megabytes"),
        (("fetch", "77"), 1, "no job of cluster 77"),
        (("history", "77"), 1, "there is no job 77 of yours"),
        (("rm", "77.1"), 1, "there is no job 77.1 of yours"),
        (("rm", "seven"), 100, "'seven' is no job: say CLUSTER or CLUSTER.PROC"),
        (("rm",), 100, "Missing argument"),
        (("frobnicate",), 100, "No such command"),
        (("--config", "/none", "q"), 100, "/none"),
    ]:
        found, _, err = call(*words)
        assert found == expected, err
        assert text in err
    code, out, _ = call("submit", "good.sub", "--json")
    cluster = str(json.loads(out)["cluster"])
    assert code == 0
    assert call("wait", cluster, "--timeout", "0")[0] == cli_ask.TRY_AGAIN
    assert call("rm", cluster)[0] == 0
    assert call("wait", cluster)[0] == 1
    for command in [(), ("submit",), ("q",), ("status",), ("rm",), ("wait",), ("fetch",), ("history",)]:
        assert "sailplane " in call(*command, "--help")[1]


def test_an_expired_proxy_is_refused_before_anything_is_sent(daemon: Daemon, test_grid: grid.Grid) -> None:
    place = daemon.place
    (place / "run.sh").write_text("#!/bin/sh\n")
    grid.write_private(place / "px", grid.make_proxy(test_grid.user("Alice Adams"), lifetime_s=-60).pem)
    (place / "job.sub").write_text("executable = run.sh\nx509userproxy = px\nqueue\n")
    daemon.start()
    done = daemon.call("submit", "job.sub")
    assert done.returncode == 1
    assert "ended at" in done.stderr
    assert "make a new one" in done.stderr
    assert list((place / "spool").iterdir()) == []


def test_a_pool_ends_in_order_and_comes_back(daemon: Daemon) -> None:
    daemon.start()
    key = (daemon.place / "pool" / "keys.d" / "POOL").read_bytes()
    second = Daemon(daemon.place, daemon.knobs)
    command = [sys.executable, "-m", "pool", "--config", str(daemon.config)]
    done = subprocess.run(command, env=second.environ, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "another pool is running" in done.stderr) == (100, True)
    assert daemon.stop(signal.SIGINT) == 0
    assert not (daemon.place / "pool" / "socket").exists()
    assert not (daemon.place / "log" / "PoolLog.old").exists()
    daemon.knobs["MAX_POOL_LOG"] = "300"
    daemon.start()
    assert (daemon.place / "pool" / "keys.d" / "POOL").read_bytes() == key
    assert daemon.stop() == 0
    old = daemon.place / "log" / "PoolLog.old"
    assert 300 < old.stat().st_size < 1500
    assert old.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("knob", "value", "words"),
    [("SAILPLANE_POOL_PORT", "many", "SAILPLANE_POOL_PORT"), ("SAILPLANE_POOL_LEASE", "-5", "SAILPLANE_POOL_LEASE")],
)
def test_wrong_settings_end_the_start(daemon: Daemon, knob: str, value: str, words: str) -> None:
    daemon.configure(**{knob: value})
    command = [sys.executable, "-m", "pool", "--config", str(daemon.config)]
    done = subprocess.run(command, env=daemon.environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 100
    assert words in done.stderr
    assert value in done.stderr


def test_an_open_key_directory_is_refused(daemon: Daemon) -> None:
    keys = daemon.place / "pool" / "keys.d"
    keys.mkdir(parents=True)
    keys.chmod(0o755)
    daemon.configure()
    command = [sys.executable, "-m", "pool", "--config", str(daemon.config)]
    done = subprocess.run(command, env=daemon.environ, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "open to other accounts" in done.stderr) == (100, True)


# fetch


def page(out: str = "out", err: str = "err", remaps: str = "") -> Any:
    return m.Output((), False, out, err, remaps, "/")


@pytest.mark.parametrize(
    ("name", "said", "expected"),
    [
        ("_condor_stdout", page(), "out"),
        ("_condor_stderr", page(err="logs/e"), "logs/e"),
        ("_condor_stdout", page(out="/home/alice/o"), "o"),
        ("_condor_stdout", page(out="../o"), "o"),
        ("a/b", page(), "a/b"),
        ("a", page(remaps="a=b;c=d"), "b"),
        ("./a//b", page(), "a/b"),
    ],
)
def test_where_output_goes(name: str, said: Any, expected: str) -> None:
    assert cli_fetch.placed(name, said) == expected


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "", "x\0y", "."])
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(cli_ask.Failed, match="refusing to write"):
        cli_fetch.placed(name, page())


def test_links_are_never_followed(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (outside / "file").write_text("mine")
    (inside / "link").symlink_to(outside / "file")
    (inside / "way").symlink_to(outside)
    source = os.memfd_create("x")
    os.write(source, b"theirs")
    root = os.open(inside, os.O_RDONLY | os.O_DIRECTORY)
    try:
        cli_fetch.store(root, "link", source, 0o644)  # the link is replaced
        with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
            cli_fetch.store(root, "way/file", source, 0o644)
        cli_fetch.store(root, "new/deep/file", source, 0o4755)
    finally:
        os.close(root)
        os.close(source)
    assert (outside / "file").read_text() == "mine"
    assert (inside / "link").read_text() == "theirs"
    assert not (inside / "link").is_symlink()
    assert (inside / "new" / "deep" / "file").stat().st_mode & 0o7000 == 0
    assert not [path for path in inside.rglob(".sailplane-*")]
