"""An environment through glexec in one variable: the format of the Perl tools, and what is refused."""

from __future__ import annotations

import base64
import os
import pwd
import subprocess
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glexec import wrapenv

NAMES = st.binary(min_size=1, max_size=20).filter(lambda name: not set(name) & set(b"=\0"))
VALUES = st.binary(max_size=200).filter(lambda value: b"\0" not in value)


@given(st.dictionaries(NAMES, VALUES, max_size=20))
def test_what_is_wrapped_comes_out_again(environ):
    assert wrapenv.unwrap(wrapenv.wrap(environ)) == environ


def test_the_format_is_the_perl_tools():
    """base64 of each pair and a blank, deflated with zlib's header, base64 without line breaks."""
    environ = {b"A": b"1", b"B": b"x=\n\xff" * 50}
    inner = b"".join(base64.b64encode(name + b"=" + value) + b" " for name, value in environ.items())
    assert wrapenv.wrap(environ) == base64.b64encode(zlib.compress(inner))
    assert wrapenv.unwrap(base64.b64encode(zlib.compress(inner, 9))) == environ


@given(st.binary(max_size=200))
def test_garbage_is_refused_in_order(data):
    with pytest.raises(wrapenv.Bad):
        wrapenv.unwrap(data + b"!")


def test_a_bomb_is_not_unpacked():
    bomb = base64.b64encode(zlib.compress(b"QT0x " * (20 << 20), 9))
    assert len(bomb) < 300_000
    with pytest.raises(wrapenv.Bad, match="larger"):
        wrapenv.unwrap(bomb)


def test_what_does_not_fit_a_variable_is_refused():
    with pytest.raises(wrapenv.Bad, match="too large"):
        wrapenv.wrap({b"A": os.urandom(128 << 10)})


@pytest.mark.needs_root
def test_through_glexec_and_back(site, linger):
    front = site.installed[linger].front
    wrap, unwrap = (front.with_name(f"glexec_{name}env.pl") for name in ("wrap", "unwrap"))
    values = {
        "PLAIN": "1",
        "LINES": "a\nb",
        "E": "not lost",
        "HOME": "/wrong",
        "X509_USER_PROXY": "/wrong",
        "SECRET": "x",
    }
    done = subprocess.run([wrap, "--exclude=SECRET,OTHER"], env=values, capture_output=True, check=True)
    assert {b"Skipping HOME", b"Skipping SECRET", b"Skipping X509_USER_PROXY"} == set(done.stderr.splitlines())
    env = site.environment("alice", GLEXEC_ENV=done.stdout.decode())
    script = 'printf "%s|%s|%s|%s|%s" "$PLAIN" "$LINES" "$E" "$SECRET" "$HOME"'
    result = site.call(str(unwrap), "--", "/bin/sh", "-c", script, linger=linger, env=env)
    assert result == (0, f"1|a\nb|not lost||{pwd.getpwnam(site.alice.name).pw_dir}".encode(), b"")
    one_argument = site.call(str(unwrap), "--", "echo $PLAIN; exit 5", linger=linger, env=env)  # as Perl's exec
    assert one_argument == (5, b"1\n", b"")
    assert site.call(str(unwrap), "--", "/bin/echo plain", linger=linger, env=env) == (0, b"plain\n", b"")
    assert site.call(str(unwrap), "--", "/nowhere/x", linger=linger, env=env).code == 127
    broken = site.call(str(unwrap), "--", "/bin/true", linger=linger, env={**env, "GLEXEC_ENV": "nonsense"})
    assert broken.code == 1
    assert b"not a wrapped environment" in broken.err
