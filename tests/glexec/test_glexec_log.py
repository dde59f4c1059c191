"""The contract, G: the root-owned log."""

from __future__ import annotations

import json
import stat

import pytest

pytestmark = pytest.mark.needs_root


def test_a_call_is_one_decision(site, linger):
    before = len(site.log(linger))
    assert site.call("/bin/echo", "one", linger=linger).code == 0
    lines = site.log(linger)[before:]
    assert [line["event"] for line in lines] == ["decision", "start", "end"][: 3 if linger else 2]
    decision, start = lines[:2]
    assert {
        "result": "mapped",
        "id": "test#1",
        "caller": site.pilot.name,
        "caller_uid": site.pilot.uid,
        "dn": site.users["Alice"].identity,
        "uid": site.alice.uid,
        "gid": site.alice.gid,
        "account": site.alice.name,
        "command": "/bin/echo one",
    }.items() <= decision.items()
    assert start["pid"]
    assert start["account"] == site.alice.name
    if linger:
        assert lines[2]["result"] == "exit"
        assert lines[2]["status"] == 0
        assert lines[2]["left"] == 0


def test_the_log_is_roots_alone(site, linger):
    found = site.installed[linger].log.stat()
    assert (found.st_uid, found.st_gid) == (0, 0)
    assert stat.S_IMODE(found.st_mode) in (0o600, 0o640)


@pytest.mark.parametrize(
    "text", ['x\n{"time":"now","event":"decision"}', '","dn":"/CN=root', "\x1b[2J\r\0"[:-1], "é\udcff"]
)
def test_a_line_cannot_be_forged(site, linger, text):
    """Through the id, the arguments and the proxy's path; also by calls that are refused."""
    before = len(site.log(linger))
    raw = text.encode("utf-8", "surrogateescape")
    env = {**{key.encode(): value.encode() for key, value in site.environment().items()}, b"GLEXEC_ID": raw}
    assert site.call("/bin/true", raw, linger=linger, env=env).code == 0
    assert site.call(b"/nowhere" + raw, linger=linger, env=env).code == 201
    assert site.call("/bin/true", linger=linger, env={**env, b"GLEXEC_CLIENT_CERT": raw}).code == 201
    lines = site.log(linger)[before:]
    decisions = [line for line in lines if line["event"] == "decision"]
    assert len(decisions) == 3
    assert {line["id"] for line in lines} == {text}
    assert decisions[0]["command"] == f"/bin/true {text}"
    assert decisions[0]["dn"] == site.users["Alice"].identity
    for line in site.installed[linger].log.read_bytes().splitlines()[before:]:
        assert line.isascii()
        assert line.decode().isprintable()
        assert json.loads(line)


def test_a_line_has_a_limited_length(site, linger):
    before = len(site.installed[linger].log.read_bytes())
    env = site.environment(GLEXEC_ID="\n" * 100_000)
    assert site.call("/bin/true", *["y" * 100_000] * 5, linger=linger, env=env).code == 0
    lines = site.installed[linger].log.read_bytes()[before:].splitlines()
    assert all(len(line) < 20_000 for line in lines)


def test_a_log_that_cannot_be_kept_stops_the_call(site, linger, spare):
    assert site.call("/bin/true", installed=spare).code == 0
    spare.log.chmod(0o666)
    assert site.call("/bin/true", installed=spare).code == 202
    spare.log.unlink()
    spare.log.symlink_to("/dev/full")
    assert site.call("/bin/true", installed=spare).code == 202
    spare.log.unlink()
