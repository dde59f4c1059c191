"""The keys of glexec.conf beyond who may call and what lingers, each by a call; and bad files and mappings."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from demo.grid import make_proxy
from glexec import conf, files, rootlog
from glexec.codes import Failure
from glexec.conf import DISABLED, FCNTL, FLOCK
from glexec.install import Installed, uninstall

pytestmark = pytest.mark.needs_root


@pytest.fixture(scope="module")
def made(site) -> Iterator[Installed]:
    """An installation that lingers, to be configured by the tests."""
    found = site.install(True, "keys")
    yield found
    uninstall(found, remove_log=True)


@pytest.fixture
def configure(made) -> Iterator[Callable[..., None]]:
    """configure(key=value, ...): in place of what is there, or behind it."""
    old, old_map = made.configuration.read_text(), made.grid_mapfile.read_text()

    def change(**keys: str) -> None:
        lines = made.configuration.read_text().splitlines()
        kept = [line for line in lines if line.partition(" = ")[0] not in keys]
        text = "\n".join([*kept, *(f"{key} = {value}" for key, value in keys.items()), ""])
        made.configuration.write_text(text)

    yield change
    made.configuration.write_text(old)
    made.grid_mapfile.write_text(old_map)


# Log


def test_silent_logging_says_nothing_to_the_caller(site, made, configure):
    configure(silent_logging="yes")
    result = site.call("/bin/true", installed=made, env=site.environment("eve"))
    assert result == (203, b"", b"")
    assert site.last("decision", installed=made)["reason"].startswith("denied")


def test_the_log_may_go_to_a_log_daemon(tmp_path):
    """A socket in the place of /dev/log, which belongs to the whole host."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
        door.bind(str(tmp_path / "log"))
        door.settimeout(30)
        settings = conf.parse(GOOD + b"log_destination = syslog\nsyslog_facility = LOG_LOCAL3\n")
        log = rootlog.Syslog(settings.syslog_facility, str(tmp_path / "log"))
        log.fields = {"id": "a\n<0>forged"}
        log.write("decision", result="mapped")
        head, text = door.recv(65536).split(b": ", 1)
    assert head == b"<157>glexec[%d]" % os.getpid()  # local3.notice
    assert json.loads(text)["id"] == "a\n<0>forged"
    assert b"\n" not in text
    with pytest.raises(Failure, match="refused"):  # the daemon is gone: nothing may run unrecorded
        log.write("start")
    log._socket.close()


GOOD = b"[glexec]\nlcmaps_db_file = /db\nlcmaps_get_account_policy = p\n"


def test_without_a_log_daemon_nothing_runs(site, made, configure):
    if Path("/dev/log").exists():
        pytest.skip("this host has a log daemon")
    configure(log_destination="syslog")
    assert site.call("/bin/true", installed=made).code == 202


# Log-only mode


def test_log_only_decides_and_does_not_switch(site, made, configure):
    configure(log_only="yes")
    result = site.call("/usr/bin/id", "-u", installed=made)
    assert (result.code, result.out) == (0, b"%d\n" % site.pilot.uid)
    line = site.last("decision", installed=made)
    assert (line["log_only"], line["uid"], line["account"]) == (True, site.alice.uid, site.alice.name)
    assert site.call("/usr/bin/id", "-u", installed=made, env=site.environment("eve")).code == 203


# Epilogue


@pytest.fixture
def epilogue(site, configure) -> Iterator[Path]:
    """A program that writes down what it is given; its directory is root's."""
    program = site.base / "epilogue"
    configure(epilogue=str(program))
    yield program
    for path in (program, site.base / "epilogue.out"):
        path.unlink(missing_ok=True)


def write_program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_an_epilogue_runs_as_root_after_the_payload(site, made, epilogue):
    out = site.base / "epilogue.out"
    write_program(epilogue, f"id -u >{out}; env >>{out}; readlink /proc/self/fd/0 >>{out}")
    env = site.environment("alice", GLEXEC_EPILOG_STATUS="forged")
    assert site.sh("exit 7", installed=made, env=env).code == 7
    lines = out.read_text().splitlines()
    assert lines[0] == "0"
    assert lines[-1] == "/dev/null"
    for fact in ("STATUS=7", f"UID={site.alice.uid}", f"GID={site.alice.gid}", f"USER={site.alice.name}"):
        assert f"GLEXEC_EPILOG_{fact}" in lines
    assert "GLEXEC_EPILOG_STATUS=forged" not in lines
    assert "HOME=/root" in lines  # the payload's user writes nothing there
    assert site.last("epilogue", installed=made)["result"] == "done"
    assert site.sh("kill -9 $$", installed=made).code == -9
    assert "GLEXEC_EPILOG_SIGNAL=9" in out.read_text()


@pytest.mark.parametrize(("status", "code"), [(1, 202), (200, 202), (201, 204), (204, 204), (205, 202)])
def test_a_failed_epilogue_is_the_calls_failure(site, made, epilogue, status, code):
    write_program(epilogue, f"exit {status}")
    assert site.call("/bin/true", installed=made).code == code
    assert site.last("epilogue", installed=made)["result"] == "failed"


def test_an_epilogue_has_an_account_and_a_time(site, made, configure, epilogue):
    out = site.base / "epilogue.out"
    out.write_text("")
    os.chown(out, site.bob.uid, site.bob.gid)
    configure(epilogue_user=site.bob.name, epilogue_group=site.bob.name, epilogue_timeout="1")
    write_program(epilogue, f"id -u >{out}; sleep 600 & sleep 600")
    assert site.call("/bin/true", installed=made).code == 202
    assert out.read_text() == f"{site.bob.uid}\n"
    line = site.last("epilogue", installed=made)
    assert (line["in_time"], line["left"]) == (False, 0)
    assert site.no_process_of(site.bob)


def test_an_epilogue_that_others_can_write_stops_the_call(site, made, epilogue):
    write_program(epilogue, "exit 0")
    epilogue.chmod(0o777)
    assert site.call("/bin/true", installed=made).code == 202


# Locks


@pytest.mark.parametrize("how", [FLOCK, FCNTL])
def test_who_renews_in_place_keeps_readers_away(site, made, configure, how):
    configure(input_lock_mechanism=how)
    path = site.proxy(f"locked-{how}", make_proxy(site.users["Alice"]).pem)
    with path.open("r+b") as file:
        (fcntl.flock if how == FLOCK else fcntl.lockf)(file, fcntl.LOCK_EX)
        waiting = site.start("/bin/true", installed=made, env=site.environment(path))
        time.sleep(0.3)  # a call takes a tenth of it
        assert waiting.poll() is None
    assert waiting.wait(30) == 0
    waiting.communicate()
    configure(input_lock_mechanism="disabled")
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert site.call("/bin/true", installed=made, env=site.environment(path)).code == 0
    path.unlink()


def test_a_lock_that_stays_is_201(site, made, monkeypatch, tmp_path):
    path = tmp_path / "proxy"
    path.write_bytes(b"x")
    path.chmod(0o600)
    monkeypatch.setattr(files, "_LOCK_S", 0.1)
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Failure, match="holds a lock") as caught:
            files.read_credential(str(path), 0, "GLEXEC_CLIENT_CERT", FLOCK)
    assert caught.value.code == 201
    assert files.read_credential(str(path), 0, "GLEXEC_CLIENT_CERT", FLOCK) == b"x"


# What a caller may put in the credential's place


def test_a_proxy_that_changes_while_it_is_read_is_201(monkeypatch, tmp_path):
    path = tmp_path / "proxy"
    path.write_bytes(b"old")
    path.chmod(0o600)
    read = files._read

    def changed_after(file: int) -> bytes:
        data = read(file)
        path.write_bytes(b"newer")
        return data

    monkeypatch.setattr(files, "_read", changed_after)
    with pytest.raises(Failure, match="changed while it was read") as caught:
        files.read_credential(str(path), 0, "GLEXEC_CLIENT_CERT", DISABLED)
    assert caught.value.code == 201


@pytest.mark.slow
def test_a_writer_in_a_loop_gives_a_whole_credential_or_201(site, made):
    """Two whole credentials of two people, written in place by turns: never a mixture, never a third answer."""
    pems = [make_proxy(site.users[name], key="ec").pem for name in ("Alice", "Bob")]
    path = site.proxy("flapping", pems[0])
    ended = threading.Event()

    def write() -> None:
        turn = 0
        while not ended.is_set():
            turn ^= 1
            path.write_bytes(pems[turn])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        codes = {site.call("/bin/true", installed=made, env=site.environment(path)).code for _ in range(5)}
    finally:
        ended.set()
        writer.join()
        path.unlink()
    assert codes <= {0, 201}


def test_ten_megabytes_are_refused_at_once(site, made):
    path = site.proxy("huge", b"x" * (10 << 20))
    result = site.call("/bin/true", installed=made, env=site.environment(path))
    assert (result.code, result.err) == (201, b"glexec: GLEXEC_CLIENT_CERT: is too large\n")
    path.unlink()


@pytest.mark.parametrize(("starts_s", "code"), [(-300, 0), (200, 201)])
def test_a_clock_that_is_behind(site, made, starts_s, code):
    path = site.proxy("skewed", make_proxy(site.users["Alice"], starts_s=starts_s).pem)
    result = site.call("/bin/true", installed=made, env=site.environment(path))
    path.unlink()
    assert result.code == code
    assert code == 0 or b"not valid yet; is the clock right where it was made" in result.err


# Mappings


def test_a_user_is_never_mapped_to_the_callers_account(site, made, configure):
    made.grid_mapfile.write_text(f'"{site.users["Alice"].identity}" {site.pilot.name}\n')
    result = site.call("/bin/true", installed=made)
    assert (result.code, result.err) == (202, b"glexec: the mapping names the caller's own account; refused\n")
    own = site.environment("alice", X509_USER_PROXY=str(site.private / "alice.pem"))
    assert site.call("/usr/bin/id", "-u", installed=made, env=own).out == b"%d\n" % site.pilot.uid  # as probes do


def test_an_account_without_home_and_shell_will_do(site, made, configure):
    name = f"{site.alice.name}x"
    subprocess.run(["useradd", "-M", "-d", "/nowhere/home", "-s", "/nowhere/shell", name], check=True)
    try:
        made.grid_mapfile.write_text(f'"{site.users["Alice"].identity}" {name}\n')
        result = site.sh("echo $HOME; pwd", installed=made, cwd=site.private)
        assert result == (0, b"/nowhere/home\n/\n", b"")
    finally:
        subprocess.run(["userdel", name], check=True, capture_output=True)


def test_a_refresh_without_a_command_replaces_the_copy(site, made):
    place = site.base / "refresh"
    place.mkdir()
    os.chown(place, site.alice.uid, site.alice.gid)
    env = site.environment("alice", GLEXEC_TARGET_PROXY=str(place / "proxy"), GLEXEC_MODE="lcmaps_get_account")
    for _ in range(2):
        assert site.call(installed=made, env=env) == (0, b"", b"")
        assert (place / "proxy").read_bytes() == (site.private / "alice.pem").read_bytes()
        found = (place / "proxy").stat()
        assert (found.st_uid, found.st_mode & 0o777) == (site.alice.uid, 0o600)
        (place / "proxy").chmod(0)  # as a user may
    (place / "proxy").unlink()
    place.rmdir()
