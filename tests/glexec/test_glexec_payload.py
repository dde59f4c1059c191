"""The contract, C and D: the payload's identity, limits and environment."""

from __future__ import annotations

import re
import resource
import socket

import pytest

from demo import accounts as demo_accounts
from demo.grid import make_grid, make_proxy, write_private
from glexec.install import uninstall

pytestmark = pytest.mark.needs_root


def test_the_payload_is_the_target_for_good(site, linger):
    probe = f"""
import os
print(os.getresuid(), os.getresgid(), os.getgroups())
for call in (lambda: os.setuid(0), lambda: os.setresuid(-1, 0, -1), lambda: os.setgid(0), lambda: os.setgroups([0]),
             lambda: os.setuid({site.pilot.uid}), lambda: os.kill(os.getppid(), 0)):
    try:
        call(); print("regained")
    except PermissionError:
        print("refused")
"""
    result = site.call("/usr/bin/python3", "-IS", "-c", probe, linger=linger)
    uid, gid = site.alice.uid, site.alice.gid
    expected = f"{(uid,) * 3} {(gid,) * 3} [{gid}]\n" + "refused\n" * 6
    assert (result.code, result.out.decode(), result.err) == (0, expected, b"")


def test_no_descriptor_is_passed_on(site, linger):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        result = site.call("/bin/ls", "/proc/self/fd", linger=linger, pass_fds=(theirs.fileno(), ours.fileno()))
    assert result.out.split() == [b"0", b"1", b"2", b"3"]  # 3 is the listing's own


def test_limits_are_the_callers(site, linger):
    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_NPROC, (500, 600))
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200))

    result = site.call("/bin/cat", "/proc/self/limits", linger=linger, preexec_fn=lower)
    assert re.search(rb"Max processes +500 +600 ", result.out)
    assert re.search(rb"Max open files +100 +200 ", result.out)


def test_a_full_account_can_still_be_called(site, linger):
    """A fork bomb's limit does not keep its killer out: fork would be refused, execve is not."""
    limit = 20  # the pilot has about three, the full account has it all
    hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]  # root may not be able to raise that one here

    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_NPROC, (limit, hard))

    bomb = f"for i in $(seq {limit}); do sleep 100 & done; echo up; wait"
    with site.start("/bin/sh", "-c", bomb, linger=linger) as full:
        try:
            assert full.stdout.read(3) == b"up\n"
            refused = site.sh("/bin/true; /bin/true", linger=linger, preexec_fn=lower)
            result = site.call("/bin/echo", "here", linger=linger, preexec_fn=lower)
        finally:
            demo_accounts.kill_all(site.alice.uid)
    assert refused.code != 0  # so the limit was there
    assert result == (0, b"here\n", b"")


def test_the_environment_is_wiped(site, linger):
    env = {
        **site.environment(),
        "SECRET": "1",
        "X509_USER_PROXY": "/the/pilots",
        "LD_LIBRARY_PATH": "/nowhere",
        "PYTHONPATH": "/nowhere",
        "HOME": "/the/pilots",
        "GLEXEC_ENV": "blob",
        "GLEXEC_EPILOG_X": "1",
        "BASH_ENV": "/nowhere",
    }
    found = dict(
        item.split(b"=", 1) for item in site.call("/usr/bin/env", "-0", linger=linger, env=env).out.split(b"\0")[:-1]
    )
    kept = {name: value for name, value in found.items() if name.startswith(b"GLEXEC_")}
    assert set(kept) == {b"GLEXEC_CLIENT_CERT", b"GLEXEC_TARGET_PROXY", b"GLEXEC_ID", b"GLEXEC_ENV"}
    assert {name: value for name, value in found.items() if name not in kept} == {
        b"HOME": b"/nonexistent",
        b"USER": site.alice.name.encode(),
        b"LOGNAME": site.alice.name.encode(),
        b"PATH": b"/usr/local/bin:/usr/bin:/bin",
    }


def test_the_white_list_lets_names_through(site, linger):
    name = f"kept-{linger}"
    made = site.install(linger, name, preserve_env_variables=("BATCH_ID", "MALLOC_CHECK_", "HOME"))
    env = {**site.environment(), "BATCH_ID": "a b=c", "MALLOC_CHECK_": "3", "OTHER": "x"}
    result = site.call("/usr/bin/env", installed=made, env=env)
    assert b"BATCH_ID=a b=c\n" in result.out
    for hidden in (b"MALLOC_CHECK_", b"OTHER"):
        assert hidden not in result.out
    assert b"HOME=/nonexistent\n" in result.out
    assert site.last("decision", installed=made)["warnings"] == ["MALLOC_CHECK_ is never preserved"]
    uninstall(made, remove_log=True)


@pytest.mark.parametrize("value", [b"a\nb", b"x=y", b"\"'`$(id)", b"", b"\xff\xfe", b"e" * 100_000])
def test_values_pass_bit_for_bit(site, linger, value):
    env = {**{key.encode(): text.encode() for key, text in site.environment().items()}, b"GLEXEC_ENV": value}
    result = site.call("/usr/bin/env", "-0", linger=linger, env=env)
    assert b"GLEXEC_ENV=" + value in result.out.split(b"\0")


HOSTILE = {
    "MALLOC_CHECK_": "3",
    "MALLOC_PERTURB_": "85",
    "GLIBC_TUNABLES": "glibc.malloc.check=3",
    "IFS": "glexec/",
    "PATH": "/nowhere",
    "ENV": "/nowhere",
    "BASH_ENV": "/nowhere",
    "CDPATH": "/etc",
    "PYTHONHOME": "/nowhere",
    "PYTHONSTARTUP": "/nowhere",
    "PYTHONVERBOSE": "1",
    "PYTHONDEVMODE": "1",
    "LANG": "tr_TR.ISO-8859-9",
    "TZ": "/etc/passwd",
    "TMPDIR": "/nowhere",
    "SUDO_UID": "0",
    "SUDO_USER": "root",
    "LCMAPS_DB_FILE": "/nowhere",
    "X509_CERT_DIR": "/nowhere",
}


def test_a_hostile_environment_changes_nothing(site, linger, shell):
    result = site.call("/usr/bin/id", "-un", linger=linger, shell=shell, env={**site.environment(), **HOSTILE})
    assert result == (0, site.alice.name.encode() + b"\n", b"")


def test_a_preloaded_library_is_harmless(site, linger):
    """Only what runs at the caller's own account loads (or misses) it, and says so on stderr."""
    env = {**site.environment(), "LD_PRELOAD": "/nowhere/library.so"}
    result = site.sh("id -un; exit 3", linger=linger, env=env)
    assert (result.code, result.out) == (3, site.alice.name.encode() + b"\n")
    assert all(b"LD_PRELOAD" in line for line in result.err.splitlines())


def test_trust_roots_are_not_the_callers(site, linger, tmp_path):
    """A CA of the caller's own does not become a trusted one."""
    place = site.base / f"evil-{linger}"
    grid = make_grid(place, name="Evil CA", organisation="sailplane-demo")
    path = write_private(
        site.private / f"evil-{linger}.pem",
        make_proxy(grid.user("Alice")).pem,
        owner=(site.pilot.uid, site.pilot.gid),
    )
    more = {name: str(grid.certificates_dir) for name in ("X509_CERT_DIR", "LCMAPS_X509_CERT_DIR")}
    assert site.call("/bin/true", linger=linger, env={**site.environment(path), **more}).code == 203
