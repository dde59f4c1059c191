"""What glexec decides without touching anything: configuration, requests, verdicts, control words, log lines."""

from __future__ import annotations

import ast
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import glexec
from glexec import codes, conf, control, decision, front, install, policy, request, rootlog, trust, word
from glexec.codes import CLIENT, DENIED, INTERNAL, Failure

EXIT = 256  # one exit code in a wait status


# What runs on a node's own interpreter


ON_NODES = [*sorted(Path(glexec.__file__).parent.glob("*.py")), Path(glexec.__file__).parents[1] / "starter/places.py"]


@pytest.mark.parametrize("file", ON_NODES, ids=lambda file: file.stem)
def test_old_interpreters_can_read_it(file):
    """Python 3.6 syntax, and no annotation that it could not evaluate."""
    if file.stem in install._NOT_ON_NODES:
        return
    tree = ast.parse(file.read_text(), feature_version=(3, 6))
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign):  # before 3.14 evaluated at once, but for those of local names
            assert file.stem == "places"
            assert not isinstance(node.annotation, (ast.BinOp, ast.Subscript))
        hints = [node.returns, *(a.annotation for a in node.args.args)] if isinstance(node, ast.FunctionDef) else []
        assert not any(isinstance(hint, (ast.BinOp, ast.Subscript)) for hint in hints if hint)


@pytest.mark.parametrize("module", ["root", "front", "linger", "decision"])
def test_nothing_slow_is_imported(module):
    """Each of these costs more milliseconds than all the rest of a call's own work."""
    import subprocess

    script = f"import sys; sys.path.insert(0, '.'); import glexec.{module}; print(*sorted(sys.modules))"
    done = subprocess.run(
        ["/usr/bin/python3", "-IS", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(glexec.__file__).parents[1],
    )
    slow = {"json", "re", "enum", "signal", "socket", "typing", "subprocess", "configparser", "contextlib", "ctypes"}
    assert not slow & set(done.stdout.split())


# glexec.conf

GOOD = b"""# comment
[other]
x = y
[glexec]
linger = no
user_white_list = pilot, .group ,
preserve_env_variables = A, LD_X, MALLOC_Y
create_target_proxy = no
lcmaps_db_file = "/etc/lcmaps.db"
lcmaps_get_account_policy = p
log_file = /var/log/glexec
silent_logging = yes
whatever = 1
"""


def test_a_configuration_is_read():
    settings = conf.parse(GOOD)
    assert (settings.linger, settings.create_target_proxy) == (False, False)
    assert settings.callers == ["pilot", ".group"]
    assert settings.kept_variables == ["A"]
    assert (settings.db_file, settings.policy, settings.log_file) == ("/etc/lcmaps.db", "p", "/var/log/glexec")
    assert settings.warnings == [
        "unknown section other",
        "LD_X is never preserved",
        "MALLOC_Y is never preserved",
        "unknown key whatever",
    ]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"linger = no", b"linger = No"),
        (b"linger = no", b"linger"),
        (b"linger = no", b"= no"),
        (b"[glexec]\n", b""),
        (b"log_file = /", b"log_file = "),
        (b"log_file", b"log"),
        (b"lcmaps_get_account_policy = p", b"lcmaps_get_account_policy ="),
        (b"silent_logging = yes", b"lcmaps_timeout = 0"),
        (b"silent_logging = yes", b"lcmaps_debug_level = x"),
        (b"preserve_env_variables = A", b"preserve_env_variables = yes\nx ="),
        (b"pilot", b"\xff"),
    ],
)
def test_a_wrong_configuration_is_named(old, new):
    assert old in GOOD
    with pytest.raises(Failure, match=r"glexec\.conf: ") as caught:
        conf.parse(GOOD.replace(old, new))
    assert caught.value.code == INTERNAL


@given(st.binary(max_size=300))
def test_garbage_is_refused_in_order(data):
    with pytest.raises(Failure):
        conf.parse(b"[glexec]\n" + data)  # never complete


def test_what_a_policy_believes():
    text = (
        'v = "m.mod" " -certdir /a/b" " --x"\n# -gridmapfile /commented\nw = "n.mod" "-gridmapfile /c -gridmapdir /d"\n'
    )
    assert policy.believed(text + "glexec_get_account:\n") == ["/a/b", "/c", "/d"]
    assert policy.believed('"m.mod -gridmapfile here"') == ["here"]  # to be refused
    assert policy.plugin_places('path = "/x"\npath=/y\nv = "/z/m.mod" " -certdir /c"\n#path = /no\nw = n.mod\n') == [
        "/x",
        "/y",
        "/z/m.mod",
    ]
    policy.require_policy(" p: \n", "p")
    for other in ("", "pp:\n", "# p:\n", "q -> p\n"):
        with pytest.raises(Failure):
            policy.require_policy(other, "p")


# Requests


def test_a_request_has_the_contracts_defaults():
    wish = request.understand({"GLEXEC_CLIENT_CERT": "/c"}, ["/x", "y"])
    assert (wish.certificate, wish.source, wish.target, wish.command) == ("/c", "/c", None, ["/x", "y"])
    assert request.copy_place(wish, 1234) == "/tmp/x509up_u1234"
    wish = request.understand({"GLEXEC_CLIENT_CERT": "/c", "GLEXEC_TARGET_PROXY": "/dev/null"}, [])
    assert request.copy_place(wish, 1234) is None


def test_the_payloads_environment():
    given_ = {b"GLEXEC_A": b"1", b"GLEXEC_CONTROL_FD": b"3", b"GLEXEC_EPILOG_X": b"1", b"K": b"\xff", b"OTHER": b""}
    account = {b"HOME": b"/h", b"USER": b"u", b"LOGNAME": b"u", b"PATH": b"/usr/local/bin:/usr/bin:/bin"}
    assert request.payload_environment(given_, ["K", "HOME"], "u", "/h", None) == {
        b"GLEXEC_A": b"1",
        b"K": b"\xff",
        **account,
    }
    kept = request.payload_environment({b"X509_USER_PROXY": b"/pilot"}, ["X509_USER_PROXY"], "u", "/h", "/p")
    assert kept == {b"X509_USER_PROXY": b"/p", **account}
    assert b"X509_USER_PROXY" not in request.payload_environment(
        {b"X509_USER_PROXY": b"/pilot"}, ["X509_USER_PROXY"], "u", "/h", None
    )


# The front's verdict


def test_a_started_payloads_end():
    for code in range(256):
        assert front.verdict(code * EXIT, started=True) == (code, 0, "")
    for number in range(1, 65):
        for core in (0, 128):
            assert front.verdict(number | core, started=True) == (128 + number, number, "")


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (0, 0),
        (201 * EXIT, 201),
        (202 * EXIT, 202),
        (203 * EXIT, 203),
        (1 * EXIT, 203),
        (126 * EXIT, 202),
        (127 * EXIT, 202),
        (9, 202),
        (None, 203),
    ],
)
def test_before_the_start_every_end_is_the_tools(status, code):
    found, number, text = front.verdict(status, started=False)
    assert (found, number) == (code, 0)
    assert bool(text) == (status not in (0, 201 * EXIT, 202 * EXIT, 203 * EXIT))


def test_the_word_is_shared_by_inheritance(tmp_path):
    file = tmp_path / "word"
    file.touch()
    fd = os.open(file, os.O_RDONLY)
    word.add(fd, word.WATCHING)
    copy = os.dup(fd)
    word.add(copy, word.name_bits(b"\x000ab1f"))
    child = os.fork()
    if child == 0:
        word.add(fd, word.STARTED)
        os._exit(0)
    os.waitpid(child, 0)
    value = word.read(fd)
    assert value & word.WATCHING
    assert value & word.STARTED
    assert word.name_in(value) == b"\x000ab1f"
    assert word.name_in(word.WATCHING | word.STARTED) is None
    word.drop(copy, word.STARTED)
    assert not word.read(fd) & word.STARTED
    os.close(fd)
    os.close(copy)
    assert file.stat().st_size == 0


# LCMAPS's answers


def test_a_mapping_is_understood():
    found = decision.understand(b"mapped\0/CN=a\x0010\x0020,21\0\0lcmaps\0lease\0/vo", b"noise", 0, True)
    assert (found.dn, found.uid, found.gids, found.secondary) == ("/CN=a", 10, [20, 21], [])
    assert (found.by, found.lease, found.fqans) == ("lcmaps", "lease", ["/vo"])


@pytest.mark.parametrize(
    ("reply", "chatter", "status", "in_time", "code"),
    [
        (b"failed\x00203\0no\0/CN=a", b"", 0, True, DENIED),
        (b"failed\x00201\0old\0/CN=a", b"", 0, True, CLIENT),
        (b"failed\x00203\0no\0/CN=a", b"LCMAPS initialization failure", 0, True, INTERNAL),
        (b"failed\x000\0no\0/CN=a", b"", 0, True, INTERNAL),
        (b"failed", b"", 0, True, INTERNAL),
        (b"", b"", 0, True, INTERNAL),
        (b"", b"", 256, True, INTERNAL),
        (b"", b"munmap_chunk()", 6, True, INTERNAL),
        (b"failed\x00203\0no\0", b"", 6, True, INTERNAL),
        (b"mapped\0/CN=a\x0010\x0020\0", b"", 6, True, INTERNAL),
        (b"mapped\0/CN=a\x0010\x0020\0", b"", 0, False, INTERNAL),
        (b"mapped\0/CN=a\0x\x0020\0", b"", 0, True, INTERNAL),
        (b"\xff\xfe" * 100, b"\xff", 0, True, INTERNAL),
    ],
)
def test_only_an_orderly_no_is_denied(reply, chatter, status, in_time, code):
    with pytest.raises(decision.Refusal) as caught:
        decision.understand(reply, chatter, status, in_time)
    assert caught.value.code == code


# The control socket's words


def test_every_request_has_a_rule_in_every_phase():
    verbs = {"signal", "stop", "cont", "kill-all"}
    phases = {control.RUNNING, control.STOPPED, control.EMPTIED}
    assert set(control.RULES) == {(phase, verb) for phase in phases for verb in verbs}
    for (phase, verb), (_, carried_out) in control.RULES.items():
        assert carried_out == (phase != control.EMPTIED or verb == "kill-all")


def test_requests_are_understood():
    asked = control.understand(b'{"do": "signal", "to": "all", "number": 15}')
    assert (asked.verb, asked.number, asked.to_all) == ("signal", 15, True)
    assert not control.understand(b'{"do":"signal","number":64,"to":"root"}').to_all
    for verb in ("stop", "cont", "kill-all"):
        assert control.understand(b'{"do":"%s"}' % verb.encode()).verb == verb


@given(st.binary(max_size=600) | st.recursive(st.none() | st.text(), st.lists).map(lambda x: json.dumps(x).encode()))
def test_anything_else_is_malformed(data):
    with pytest.raises(control.Malformed):
        control.understand(data)


def test_replies_are_json():
    assert json.loads(control.hello(1, 2)) == {"linger": True, "pid": 1, "root_pid": 2}
    assert json.loads(control.done("kill-all", 3)) == {"done": "kill-all", "left": 3}
    assert json.loads(control.ended(139, 0, 7, 8)) == {"ended": 139, "left": 0, "user_ms": 7, "system_ms": 8}


# The log


@given(st.text(max_size=2000), st.binary(max_size=2000))
def test_a_line_is_one_line_and_reads_back(text, raw):
    name = os.fsdecode(raw)
    data = rootlog.line(
        "decision", 1.5, {"id": text, "command": name, "n": 7, "list": [1, "a"], "none": None, "b": True}
    )
    assert data.count(b"\n") == 1
    assert data.endswith(b"\n")
    assert data[:-1].decode("ascii").isprintable()
    found = json.loads(data)
    assert found["event"] == "decision"
    assert found["time"] == "1970-01-01T00:00:01.500Z"
    for value, kept in ((text, found["id"]), (name, found["command"])):
        assert kept == value or (len(value) > 1024 and kept.startswith(value[:1024]) and len(kept) < 1100)
    assert (found["n"], found["list"], found["none"], found["b"]) == (7, [1, "a"], None, True)


def test_masking():
    assert [codes.masked(code) for code in (200, 201, 202, 203, 204, 205)] == [200, 204, 204, 204, 204, 205]


# Trust


@pytest.mark.needs_root
def test_what_only_root_can_change(tmp_path):
    place = tmp_path / "a" / "b"
    place.mkdir(parents=True)
    file = place / "file"
    file.write_text("x")
    assert trust.problem(str(file)) == ""
    assert trust.read(str(file)) == b"x"
    for changed, mode in ((file, 0o666), (place, 0o777), (place.parent, 0o777)):
        old = changed.stat().st_mode & 0o7777
        changed.chmod(mode)
        assert trust.problem(str(file)).endswith("can be written by others")
        changed.chmod(old)
    place.parent.chmod(0o1777)  # sticky: nobody can replace what root put there
    assert trust.problem(str(file)) == ""
    assert trust.problem(str(place.parent)) != ""
    link = tmp_path / "link"
    link.symlink_to(file)
    assert trust.problem(str(link)) == ""
    file.chmod(0o666)
    assert trust.problem(str(link)) != ""
    os.lchown(link, 12345, 12345)
    file.chmod(0o644)
    assert "belongs to uid 12345" in trust.problem(str(link))
    assert "No such file" in trust.problem(str(tmp_path / "missing"))
    assert "no absolute path" in trust.problem(os.path.relpath(file))


@pytest.mark.needs_root
def test_every_step_of_the_way_is_roots_own(tmp_path):
    """Also those that a resolved path does not show any more."""
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    (theirs / "inner").mkdir(parents=True)
    ours.mkdir()
    good = ours / "good"
    good.write_text("x")
    (theirs / "link").symlink_to(good)
    (ours / "conf").symlink_to(theirs / "link")
    assert trust.problem(str(ours / "conf")) == ""
    os.chown(theirs, 12345, 12345)
    assert trust.problem(str(ours / "conf")) == f"{theirs} belongs to uid 12345"
    (ours / "inner").symlink_to(theirs / "inner")  # and up again: not where the letters say
    assert trust.problem(f"{ours}/inner/../good") == f"{theirs} belongs to uid 12345"
    (ours / "round").symlink_to(ours / "round")
    assert "symbolic links" in trust.problem(str(ours / "round"))
