"""The contract, B: which files are believed, and the copy of the proxy."""

from __future__ import annotations

import os
import re
import shutil
import stat
from pathlib import Path

import pytest

from demo.grid import make_proxy

pytestmark = pytest.mark.needs_root


def refused(site, linger, path, words):
    result = site.call("/bin/true", linger=linger, env=site.environment(path))
    assert result.code == 201
    assert words in result.err


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610, 0o666, 0o4600])
def test_a_proxy_with_more_bits_is_refused(site, linger, mode):
    path = site.proxy(f"mode-{mode:o}-{linger}", make_proxy(site.users["Alice"]).pem)
    path.chmod(mode)
    refused(site, linger, path, b"GLEXEC_CLIENT_CERT: group or others have access")


def test_another_accounts_proxy_is_refused(site, linger):
    path = site.proxy(f"other-{linger}", make_proxy(site.users["Alice"]).pem)
    os.chown(path, site.alice.uid, site.alice.gid)
    refused(site, linger, path, b"Permission denied")  # read with the caller's rights, so not even opened
    path.chmod(0o604)
    refused(site, linger, path, b"does not belong to the caller")


def test_a_linked_proxy_is_refused(site, linger):
    link = site.private / f"link-{linger}"
    link.symlink_to(site.private / "alice.pem")
    refused(site, linger, link, b"is a symbolic link")
    directory = site.private / f"dirlink-{linger}"
    directory.symlink_to(site.private)
    os.lchown(directory, site.pilot.uid, site.pilot.gid)
    refused(site, linger, directory / "alice.pem", b"Not a directory")
    directory.unlink()
    directory.symlink_to(site.private)  # root's own link: the system's layout
    assert site.call("/bin/true", linger=linger, env=site.environment(directory / "alice.pem")).code == 0


def test_dots_in_the_path_are_tolerated(site):
    path = f"{site.private}/../{site.private.name}/./alice.pem"
    assert site.call("/bin/true", env={**site.environment(), "GLEXEC_CLIENT_CERT": path}).code == 0


def test_what_is_no_credential_is_refused(site, linger):
    alice, bob = site.users["Alice"], make_proxy(site.users["Bob"])
    good = make_proxy(alice)
    key = re.compile(rb"-----BEGIN PRIVATE KEY-----.*?-----END PRIVATE KEY-----\n", re.DOTALL)
    bob_key = key.search(bob.pem)[0]
    for name, pem, words in [
        ("empty", b"", b"is empty"),
        ("text", b"hello\n", b"no certificate"),
        ("keyless", key.sub(b"", good.pem), b"no private key"),
        ("bare", key.sub(b"", alice.pem), b"no private key"),
        ("mixed", key.sub(bob_key, good.pem), b"does not belong to its certificate"),
        ("large", good.pem + b"\n" * (300 << 10), b"too large"),
        ("many", good.pem + alice.pem * 40, b"more certificates"),
        ("later", make_proxy(alice, starts_s=3600).pem, b"not valid yet"),
    ]:
        refused(site, linger, site.proxy(f"{name}-{linger}", pem), words)


def test_a_fifo_or_directory_is_refused_at_once(site, linger):
    fifo = site.private / f"fifo-{linger}"
    os.mkfifo(fifo, 0o600)
    os.chown(fifo, site.pilot.uid, site.pilot.gid)
    refused(site, linger, fifo, b"not a regular file")
    refused(site, linger, site.private, b"not a regular file")
    refused(site, linger, Path("relative.pem"), b"not the absolute path")


@pytest.mark.parametrize("what", ["configuration", "lcmaps_db", "grid_mapfile", "certificates", "prefix"])
def test_what_others_can_write_is_202(site, linger, spare, what):
    certificates = spare.prefix / "certificates"
    shutil.copytree(site.grid.certificates_dir, certificates)
    spare.lcmaps_db.write_text(spare.lcmaps_db.read_text().replace(str(site.grid.certificates_dir), str(certificates)))
    assert site.call("/bin/true", installed=spare).code == 0
    path = certificates if what == "certificates" else getattr(spare, what)
    old = path.stat().st_mode & 0o7777
    for mode, owner, group in [(old | 0o002, 0, 0), (old | 0o020, 0, site.pilot.gid), (old, site.pilot.uid, 0)]:
        os.chown(path, owner, group)
        path.chmod(mode)
        result = site.call("/bin/true", installed=spare)
        assert result.code == 202
        assert b"can be written by others" in result.err or b"belongs to uid" in result.err
    os.chown(path, 0, 0)
    path.chmod(old)
    assert site.call("/bin/true", installed=spare).code == 0
    shutil.rmtree(certificates)


@pytest.fixture
def drop(site, linger):
    """A directory of the target's for copies."""
    place = site.base / f"drop-{linger}"
    place.mkdir(exist_ok=True)
    os.chown(place, site.alice.uid, site.alice.gid)
    yield place
    shutil.rmtree(place)


def test_the_copy_belongs_to_the_target(site, linger, drop):
    copy = drop / "x509"
    result = site.sh(
        'cat "$X509_USER_PROXY"; echo $X509_USER_PROXY >&2',
        linger=linger,
        env=site.environment(GLEXEC_TARGET_PROXY=str(copy)),
    )
    assert result == (0, (site.private / "alice.pem").read_bytes(), f"{copy}\n".encode())
    found = copy.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (site.alice.uid, site.alice.gid, 0o600)
    other = site.proxy(f"source-{linger}", make_proxy(site.users["Alice"]).pem)
    env = site.environment(GLEXEC_TARGET_PROXY=str(copy), GLEXEC_SOURCE_PROXY=str(other))
    assert site.call(linger=linger, env=env).code == 0  # no command: refresh the copy, run nothing
    assert copy.read_bytes() == other.read_bytes()
    assert [item.name for item in drop.iterdir()] == ["x509"]


def test_something_of_another_account_is_not_replaced(site, linger, drop):
    for copy, make in [
        (drop / "file", lambda path: path.write_text("root's")),
        (drop / "link", lambda path: path.symlink_to("/etc/hostname")),
        (drop / "directory", lambda path: path.mkdir()),
    ]:
        make(copy)
        before = copy.lstat()
        assert site.call("/bin/true", linger=linger, env=site.environment(GLEXEC_TARGET_PROXY=str(copy))).code == 201
        assert copy.lstat() == before


def test_a_place_that_is_not_the_targets_is_refused(site, linger, drop):
    env = site.environment(GLEXEC_TARGET_PROXY=str(drop / "x509"))
    for mode, owner, words in [
        (0o777, site.alice.uid, b"written by others"),
        (0o700, site.bob.uid, b"neither the target's nor root's"),
        (0o755, site.bob.uid, b"neither the target's nor root's"),
    ]:
        os.chown(drop, owner, 0)
        drop.chmod(mode)
        result = site.call("/bin/true", linger=linger, env=env)
        assert result.code == 201
        assert words in result.err
    os.chown(drop, 0, 0)
    drop.chmod(0o1777)  # the system's temporary directory
    assert site.call("/bin/true", linger=linger, env=env).code == 0


def test_the_default_place_can_be_switched_off(site, linger, spare):
    env = {name: value for name, value in site.environment().items() if name != "GLEXEC_TARGET_PROXY"}
    default = Path(f"/tmp/x509up_u{site.alice.uid}")
    show = "echo ${X509_USER_PROXY-none}"
    try:
        assert site.sh(show, installed=spare, env=env).out == f"{default}\n".encode()
        assert default.stat().st_uid == site.alice.uid
    finally:
        default.unlink(missing_ok=True)
    assert site.sh(show, installed=spare).out == b"none\n"
    text = spare.configuration.read_text()
    spare.configuration.write_text(text.replace("create_target_proxy = yes", "create_target_proxy = no"))
    assert site.sh(show, installed=spare, env=env).out == b"none\n"
    assert not default.exists()
