"""The contract, E and H: streams, arguments, directory; and what callers do with them."""

from __future__ import annotations

import os
import socket
import subprocess

import pytest

pytestmark = pytest.mark.needs_root


def test_data_pipes_are_8_bit_clean(site, linger):
    data = os.urandom(4 << 20)
    assert site.call("/bin/cat", linger=linger, input=data) == (0, data, b"")


@pytest.mark.slow
def test_a_gibibyte_each_way(site, linger):
    one, count = os.urandom(1 << 20), 1024
    with site.start("/bin/cat", linger=linger, stdin=subprocess.PIPE) as process:
        if os.fork() == 0:
            for _ in range(count):
                process.stdin.write(one)
            os._exit(0)
        process.stdin.close()
        for _ in range(count):
            assert process.stdout.read(1 << 20) == one
        assert process.stdout.read() == b""
    assert process.returncode == 0


def test_a_socket_as_standard_input(site, linger):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = site.start("/bin/sh", "-c", "read line; echo got $line >&0; exit 9", linger=linger, stdin=theirs)
        theirs.close()
        ours.sendall(b"word\n")
        assert ours.recv(100) == b"got word\n"
        assert ours.recv(100) == b""
        assert process.wait() == 9
        process.stdout.close()
        process.stderr.close()


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_streams(site, linger, shell, closed):
    def close() -> None:
        for fd in closed:
            os.close(fd)

    assert site.sh("exit 5", linger=linger, shell=shell, preexec_fn=close).code == 5


def test_arguments_pass_bit_for_bit(site, linger):
    arguments = [b"", b" ", b"a\nb", b"*", b"$(id)", b"\xff", b"-n", b"--", b"'\"\\"]
    result = site.call("/usr/bin/printf", "%s\\0", *arguments, linger=linger)
    assert result.out.split(b"\0")[:-1] == arguments


def test_the_directory_is_kept_if_the_target_may_be_there(site, linger):
    show = "pwd -P"
    assert site.sh(show, linger=linger, cwd="/usr").out == b"/usr\n"
    assert site.sh(show, linger=linger, cwd=site.private).out == b"/\n"  # the account has no home


def test_umask_session_and_group_are_kept(site, linger):
    command = "umask; cut -d' ' -f5,6 /proc/self/stat"
    result = site.sh(command, linger=linger, start_new_session=True, umask=0o027)
    umask, ids = result.out.decode().splitlines()
    assert umask == "0027"
    assert len(set(ids.split())) == 1


def test_the_probes_ping(site):
    """PanDA's: the pilot's own proxy, /bin/true, nothing on stderr. DIRAC's: no command."""
    result = site.call("/bin/true", env=site.environment(X509_USER_PROXY=str(site.private / "alice.pem")))
    assert result == (0, b"", b"")
    assert site.call(env=site.environment()) == (0, b"", b"")


def test_a_tree_goes_through_tar(site, linger):
    place = site.base / f"tree-{linger}"
    place.mkdir()
    os.chown(place, site.alice.uid, site.alice.gid)
    packed = subprocess.run(
        ["tar", "-C", "/etc", "-cf", "-", "passwd", "group"], capture_output=True, check=True
    ).stdout
    assert site.sh(f"cd {place} && tar -xf -", linger=linger, input=packed) == (0, b"", b"")
    again = site.sh(f"cd {place} && tar -cf - .", linger=linger)
    assert again.code == 0
    assert again.err == b""
    assert (place / "passwd").stat().st_uid == site.alice.uid
