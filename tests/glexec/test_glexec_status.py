"""The front reports the payload's end exactly, and the tool's own refusals by the contract's codes."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.needs_root

# 128+n is what a shell makes of a signal: these must not be mistaken for one.
CODES = [0, 1, 2, 42, 126, 127, 129, 130, 137, 139, 143, 192, 200, 205, 255]
SIGNALS = ["HUP", "INT", "QUIT", "ABRT", "KILL", "SEGV", "PIPE", "ALRM", "TERM", "USR1", "XFSZ", "RTMAX"]
DEADLY = [number for number in signal.valid_signals() if number not in (17, 18, 19, 20, 21, 22, 23, 28)]


@pytest.mark.parametrize("code", CODES)
def test_an_exit_code_is_passed_on(site, linger, code):
    assert site.sh(f"exit {code}", linger=linger) == (code, b"", b"")


@pytest.mark.parametrize("code", [201, 202, 203, 204])
def test_the_tools_own_codes_are_masked_where_the_tool_lingers(site, linger, code):
    assert site.sh(f"exit {code}", linger=linger) == (204 if linger else code, b"", b"")


@pytest.mark.parametrize("name", SIGNALS)
def test_the_front_dies_by_the_payloads_signal(site, linger, name):
    number = signal.SIGRTMAX if name == "RTMAX" else signal.Signals["SIG" + name]
    assert site.sh(f"kill -{int(number)} $$", linger=linger) == (-number, b"", b"")


@pytest.mark.parametrize("code", [0, 1, 143, 203])
def test_both_shells_serve_as_front(site, linger, shell, code):
    assert site.sh(f"exit {code}", linger=linger, shell=shell) == (204 if linger and code == 203 else code, b"", b"")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGKILL])
def test_both_shells_serve_for_signals(site, linger, shell, number):
    assert site.sh(f"kill -{int(number)} $$", linger=linger, shell=shell) == (-number, b"", b"")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_code_and_every_signal(site, linger, shell):
    for code in range(256):
        expected = 204 if linger and 201 <= code <= 204 else code
        assert site.sh(f"exit {code}", linger=linger, shell=shell).code == expected
    for number in DEADLY:
        assert site.sh(f"kill -{int(number)} $$", linger=linger, shell=shell).code == -number


def test_a_core_is_not_left_by_the_front(site, linger, tmp_path_factory):
    place = site.base / f"core-{linger}"
    place.mkdir()
    place.chmod(0o777)
    assert site.sh("kill -SEGV $$", linger=linger, cwd=place).code == -signal.SIGSEGV
    assert list(place.iterdir()) == []


def test_what_sudo_refuses_is_denied_with_words(site, linger):
    """A payload's exit 1 is 1 (above); sudo's own exit 1 is 203."""
    result = site.call("/bin/true", linger=linger, account=site.alice)
    assert result.code == 203
    assert result.out == b""
    assert b"glexec: denied: sudo did not run the root part" in result.err


@pytest.mark.parametrize("shell_breaks", [False, True])
def test_without_sudo_the_site_is_broken(site, shell_breaks, tmp_path_factory):
    """The front of an installation whose sudo vanished, or is not executable by the caller."""
    front = site.installed[True].front.read_text()
    place = site.base / f"front-without-sudo-{shell_breaks}"
    place.write_text(front.replace("/usr/bin/sudo", "/etc/hostname" if shell_breaks else "/nowhere/sudo"))
    result = subprocess.run(["/bin/sh", place, "/bin/true"], capture_output=True, check=False)
    assert result.returncode == 202
    assert result.stderr


def test_a_callers_ignored_signals_do_not_lose_the_status(site, linger):
    def ignore() -> None:
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())

    assert site.sh("exit 7", linger=linger, preexec_fn=ignore).code == 7
    assert site.sh("kill -TERM $$", linger=linger, preexec_fn=ignore).code == -signal.SIGTERM
    found = site.call("/bin/grep", "^Sig[BI]", "/proc/self/status", linger=linger, preexec_fn=ignore).out
    assert set(found.split()[1::2]) == {b"0" * 16}  # the payload starts with nothing blocked or ignored


def test_help_and_version_need_no_authorisation(site):
    for option in ("-h", "-v"):
        result = site.call(option, env={})
        assert result.code == 0
        assert b"glexec" in result.out
        assert not result.err


def test_compile_time_defaults_are_roots(site):
    assert site.call("-V").code == 203
    front = site.installed[True].front
    result = subprocess.run([front, "-V"], capture_output=True, check=True)
    assert b'GLEXEC_CONFIG_FILE="%s"' % str(site.installed[True].configuration).encode() in result.stderr
    assert Path(front).stat().st_mode & 0o7777 == 0o755
