"""The contract, by the letters of its conformance suite: codes, files, identity, environment, streams, log."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from demo import accounts as demo_accounts
from demo.grid import make_grid, make_proxy, write_private
from glexec.install import uninstall

pytestmark = pytest.mark.needs_root


@pytest.fixture
def spare(site, linger, request):
    """An installation to spoil."""
    name = "spare-" + re.sub(r"[^a-z0-9]", "-", request.node.name.lower())[:60]
    made = site.install(linger, name)
    yield made
    uninstall(made, remove_log=True)


# A. Exit codes


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"GLEXEC_CLIENT_CERT": None}, b"GLEXEC_CLIENT_CERT is not set"),
        ({"GLEXEC_CLIENT_CERT": ""}, b"GLEXEC_CLIENT_CERT is empty"),
        ({"GLEXEC_SOURCE_PROXY": ""}, b"GLEXEC_SOURCE_PROXY is empty"),
        ({"GLEXEC_TARGET_PROXY": ""}, b"GLEXEC_TARGET_PROXY is empty"),
        ({"GLEXEC_TARGET_PROXY": "/nowhere/at/all"}, b"GLEXEC_TARGET_PROXY: No such file"),
        ({"GLEXEC_TARGET_PROXY": "relative"}, b"not the absolute path"),
        ({"GLEXEC_MODE": "lcmaps_verify_account"}, b"GLEXEC_MODE"),
        *(({"GLEXEC_CONTROL_FD": str(fd)}, b"GLEXEC_CONTROL_FD is not open") for fd in range(3, 11)),
        ({"GLEXEC_CONTROL_FD": "x; id"}, b"GLEXEC_CONTROL_FD"),
        ({"GLEXEC_CONTROL_FD": "0"}, b"GLEXEC_CONTROL_FD"),
    ],
)
def test_a_client_error_is_201(site, linger, change, words):
    result = site.call("/bin/true", linger=linger, env=site.environment(**change))
    assert result.code == 201
    assert words in result.err
    assert result.err.startswith(b"glexec: ")
    assert result.out == b""


def test_t16_a_missing_command_is_201(site, linger):
    assert site.call("/nowhere/command", linger=linger).code == 201
    assert site.call("true", linger=linger).code == 201  # not a path: PATH is the caller's


def test_t15_what_cannot_be_executed_is_126(site, linger):
    assert site.call("/etc/passwd", linger=linger) == (
        126,
        b"",
        b"glexec: cannot execute the command: Permission denied\n",
    )
    script = site.base / "no-interpreter"
    script.write_text("#!/nowhere/interpreter\n")
    script.chmod(0o755)
    assert site.call(str(script), linger=linger).code == 127


def test_t02_an_expired_proxy_is_201(site, linger):
    if not (site.private / "expired.pem").exists():
        site.proxy("expired", make_proxy(site.users["Alice"], lifetime_s=-60).pem)
    result = site.call("/bin/true", linger=linger, env=site.environment("expired"))
    assert (result.code, result.err) == (201, b"glexec: the credential has expired\n")


def test_t06_to_t08_a_broken_site_is_202(site, linger, spare):
    text = spare.configuration.read_text()
    for spoiled in (None, "garbage\n", text.replace("linger = ", "linger = perhaps "), text.replace("[glexec]", "")):
        spare.configuration.unlink(missing_ok=True)
        if spoiled is not None:
            spare.configuration.write_text(spoiled)
        result = site.call("/bin/true", installed=spare)
        assert result.code == 202, spoiled
        assert result.err.startswith(b"glexec: ")
    spare.configuration.write_text(text)
    spare.lcmaps_db.unlink()
    assert site.call("/bin/true", installed=spare).code == 202
    assert site.last("decision", installed=spare)["result"] == "internal error"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda db: "this is not a policy\n" + db,
        lambda db: db.replace("glexec_get_account:", "glexec-get-account:"),
        lambda db: db.replace("glexec_get_account:", "other:"),
        lambda db: db + 'glexec_get_account:\nverify_proxy -> "',
        lambda db: db.replace("lcmaps_localaccount.mod", "lcmaps_nowhere.mod"),
        lambda db: db.replace("path = ", "path = /nowhere"),
        lambda db: db.replace("verify_proxy -> local", "nothing -> local"),
        lambda db: "",
    ],
)
def test_a_bad_policy_is_202_never_denied(site, linger, spare, spoil):
    db = spoil(spare.lcmaps_db.read_text())
    spare.lcmaps_db.write_text(db)
    result = site.call("/bin/true", installed=spare)
    assert result.code == 202, result
    assert b"denied" not in result.err


def test_a_missing_map_is_202(site, linger, spare):
    spare.grid_mapfile.unlink()
    assert site.call("/bin/true", installed=spare).code == 202


def test_t12_a_policy_that_does_not_answer_is_202(site, linger, spare):
    """A map that can't be read to its end stands for a server that does not answer."""
    spare.configuration.write_text(spare.configuration.read_text().replace("timeout = 30", "timeout = 1"))
    spare.grid_mapfile.unlink()
    os.mkfifo(spare.grid_mapfile, 0o644)
    result = site.call("/bin/true", installed=spare)
    assert (result.code, result.err) == (202, b"glexec: the mapping library gave no answer in time\n")


def test_t09_a_caller_who_is_not_listed_is_203(site, linger, spare):
    text = spare.configuration.read_text()
    spare.configuration.write_text(text.replace(f"user_white_list = {site.pilot.name}", "user_white_list = nobody"))
    assert site.call("/bin/true", installed=spare).code == 203
    assert site.last("decision", installed=spare)["result"] == "denied"
    group = text.replace(f"user_white_list = {site.pilot.name}", f"user_white_list = .{site.pilot.name}")
    spare.configuration.write_text(group)
    assert site.call("/bin/true", installed=spare).code == 0


def test_an_unmapped_user_is_203(site, linger):
    result = site.call("/bin/true", linger=linger, env=site.environment("eve"))
    assert (result.code, result.out) == (203, b"")
    assert result.err == b"glexec: denied: the site's policy does not map this credential\n"
    line = site.last("decision", linger)
    assert line["result"] == "denied"
    assert line["dn"] == site.users["Eve"].identity
    assert line["details"]  # the library's own words: for the site, not for the caller


def test_t10_a_banned_user_is_203(site, linger, spare):
    ban = spare.prefix / "etc/ban"
    ban.write_text(f'"{site.users["Alice"].identity}"\n')
    db = spare.lcmaps_db.read_text().replace("verify_proxy -> local", "verify_proxy -> ban\nban -> local")
    rule = f'ban = "lcmaps_ban_dn.mod" " -banmapfile {ban}"\n'
    spare.lcmaps_db.write_text(db.replace("good = ", rule + "good = "))
    assert site.call("/bin/true", installed=spare).code == 203
    assert site.call("/bin/true", installed=spare, env=site.environment("bob")).code == 0
    ban.unlink()


def test_a_mapping_to_root_is_refused(site, linger, spare):
    spare.grid_mapfile.write_text(f'"{site.users["Alice"].identity}" root\n')
    result = site.call("/usr/bin/id", installed=spare)
    assert (result.code, result.out) == (202, b"")


def test_a_foreign_ca_is_denied(site, linger, tmp_path):
    if not (site.private / "foreign.pem").exists():
        grid = make_grid(tmp_path, name="Foreign CA", organisation="sailplane-demo")
        site.proxy("foreign", make_proxy(grid.user("Alice")).pem)
    assert site.call("/bin/true", linger=linger, env=site.environment("foreign")).code == 203


def test_a_limited_proxy_and_a_proxys_proxy_are_mapped(site):
    first = make_proxy(site.users["Alice"], kind="limited")
    site.proxy("limited", first.pem)
    site.proxy("second", make_proxy(first, kind="limited").pem)
    for name in ("limited", "second"):
        assert site.call("/bin/true", env=site.environment(name)).code == 0
        assert site.last("decision")["dn"] == site.users["Alice"].identity


def test_an_rsa_proxy_is_mapped(site):
    site.proxy("rsa", make_proxy(site.users["Alice"], key="rsa").pem)
    assert site.call("/bin/true", env=site.environment("rsa")).code == 0


# B. File checks


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


# The copy of the proxy


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


# C. Identity


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


# D. Environment


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


# E. Streams


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


# G. Log


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


# H. Callers


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
