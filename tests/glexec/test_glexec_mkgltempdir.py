"""mkgltempdir: the page's contract, and what others may try meanwhile."""

from __future__ import annotations

import os
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.grid import make_proxy
from glexec import mkgltempdir

pytestmark = pytest.mark.needs_root


@pytest.fixture
def base(site, request) -> Iterator[Path]:
    """A directory of the pilot's that nobody else can enter, in one that all can write."""
    place = site.base / "gltmp"
    place.mkdir()
    place.chmod(0o700)
    os.chown(place, site.pilot.uid, site.pilot.gid)
    yield place
    subprocess.run(["rm", "-rf", place], check=True)


def run(site, *arguments: str | Path, linger: bool = True, **more) -> subprocess.CompletedProcess[str]:
    env = more.pop("env", None) or site.environment()
    return subprocess.run(
        [site.installed[linger].mkgltempdir, *arguments],
        env=env,
        user=site.pilot.uid,
        group=site.pilot.gid,
        extra_groups=[],
        capture_output=True,
        text=True,
        cwd="/",
        timeout=60,
        **more,
    )


def make(site, *arguments: str | Path, **more) -> Path:
    done = run(site, *arguments, **more)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    return Path(done.stdout.rstrip("\n"))


def test_it_belongs_to_the_target_and_its_parent_to_the_caller(site, base, linger):
    made = make(site, base, linger=linger)
    found = made.stat()
    assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (site.alice.uid, 0o700)
    parent = made.parent.stat()
    assert (parent.st_uid, stat.S_IMODE(parent.st_mode)) == (site.pilot.uid, 0o755)
    assert os.listdir(made.parent) == [made.name]
    assert site.sh(f"echo x >{made}/file && cat {made}/file", linger=linger).out == b"x\n"
    assert base.stat().st_mode & 0o007 == 0o001  # may be passed, not read
    assert run(site, "-r", made, linger=linger).returncode == 1
    assert (made / "file").exists()
    assert run(site, "-r", made, "-f", linger=linger).returncode == 0
    assert os.listdir(base) == []


def test_modes(site, base):
    made = make(site, "-t", "777", "-m", "711", base)
    assert stat.S_IMODE(made.stat().st_mode) == 0o777
    assert stat.S_IMODE(made.parent.stat().st_mode) == 0o711
    assert stat.S_IMODE(made.parent.parent.stat().st_mode) == 0o711


@pytest.mark.parametrize("order", ["-r PATH -f", "-rf PATH"])
def test_removal_with_what_is_in_it(site, base, order):
    made = make(site, base)
    script = f"cd {made}; mkdir -p a/b c; echo x >a/b/f; ln -s /etc l; chmod 0 a/b c; chmod 500 ."
    assert site.sh(script).code == 0
    refused = run(site, "-r", made)
    assert refused.returncode == 1
    assert "not empty" in refused.stderr
    assert (made / "a/b/f").exists()
    done = run(site, *order.replace("PATH", str(made)).split())
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert os.listdir(base) == []
    assert Path("/etc/passwd").exists()


def test_an_empty_one_needs_no_call(site, base):
    """Its parent is the caller's: removing it costs the site nothing, even when the credential has ended."""
    made = make(site, base)
    calls = len(site.log())
    assert run(site, "-r", made, env=site.environment(None)).returncode == 0
    assert len(site.log()) == calls
    assert os.listdir(base) == []


def test_what_the_caller_put_beside_it_goes_too(site, base):
    made = make(site, base)
    payload = made.parent / "payload"
    payload.write_text("#!/bin/sh\necho payload\n")
    payload.chmod(0o755)
    os.chown(payload, site.pilot.uid, site.pilot.gid)
    assert site.sh(f"cp {payload} {made} && {made}/payload").out == b"payload\n"
    assert run(site, "-r", "-f", made).returncode == 0
    assert os.listdir(base) == []


def test_default_places(site, base):
    made = make(site, env=site.environment("alice", TMPDIR=str(base)))
    assert base in made.parents
    made = make(site)
    assert made.parents[2] == Path("/tmp")
    assert run(site, "-r", made).returncode == 0


@pytest.mark.parametrize(
    "arguments",
    ["-x", "-r", "-f /tmp", "a b", "-t 9", "-t 4755", "-t 17777", "-t x", "-m 700", "-m 777", "-t"],
)
def test_wrong_usage(site, arguments):
    done = run(site, *arguments.split())
    assert (done.returncode, done.stdout) == (100, "")
    assert done.stderr.startswith("mkgltempdir: ")


def test_help(site):
    done = run(site, "-h")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(
        "usage: mkgltempdir [-h] [-r [-f] gltmp_dir] [-t targetdir-mode] [-m parentmode] [directory]"
    )


def test_a_refused_user_leaves_nothing(site, base):
    done = run(site, base, env=site.environment("eve"))
    assert (done.returncode, done.stdout) == (203, "")
    assert "denied" in done.stderr
    assert os.listdir(base) == []


def test_with_an_ended_credential_what_is_there_stays_with_its_record(site, base):
    made = make(site, base)
    assert site.sh(f"echo x >{made}/file").code == 0
    old = site.proxy("mkgl-old", make_proxy(site.users["Alice"], lifetime_s=-60).pem)
    done = run(site, "-r", "-f", made, env=site.environment(old))
    old.unlink()
    assert done.returncode == 201
    assert "expired" in done.stderr
    assert (made / "file").exists()
    assert (made.parent.parent / "record.json").exists()
    refused = run(site, "-r", "-f", made, env=site.environment("bob"))
    assert refused.returncode == 1
    assert "is mapped to another" in refused.stderr
    assert (made / "file").exists()
    assert run(site, "-r", "-f", made).returncode == 0


@pytest.mark.parametrize("what", ["open", "foreign", "missing"])
def test_a_base_that_others_can_change_is_refused(site, base, what):
    place = base if what != "missing" else base / "no"
    if what == "open":
        base.chmod(0o777)
    elif what == "foreign":
        os.chown(base, site.bob.uid, site.bob.gid)
        base.chmod(0o755)
    done = run(site, place)
    assert done.returncode == 1
    assert done.stdout == ""
    assert not os.listdir(base)


@pytest.mark.parametrize("what", ["elsewhere", "swapped", "link", "record"])
def test_only_what_was_made_is_removed(site, base, what):
    made = make(site, base)
    target, as_pilot = made, {"user": site.pilot.uid, "group": site.pilot.gid}
    if what == "elsewhere":
        target = base
    elif what == "swapped":
        subprocess.run(["rmdir", made], check=True)
        subprocess.run(["mkdir", made], check=True, **as_pilot)
    elif what == "link":
        subprocess.run(["rmdir", made], check=True)
        subprocess.run(["ln", "-s", "/etc", made], check=True, **as_pilot)
    else:
        (made.parent.parent / "record.json").write_text("[" * 100)
    done = run(site, "-r", "-f", target)
    assert done.returncode == 1, done
    assert Path("/etc/passwd").exists()
    assert made.parent.exists()


@pytest.mark.slow
def test_names_planted_by_others_are_found_out(site, base):
    """While the window is open any account can make an entry; then nothing is made at all."""
    ended = threading.Event()
    planted: list[Path] = []

    def plant() -> None:
        while not ended.is_set():
            for sticky in base.glob("dir_*/s"):
                if sticky.stat().st_mode & 0o002:
                    subprocess.run(
                        ["mkdir", sticky / "planted"], user=site.bob.uid, group=site.bob.gid, capture_output=True
                    )
                    planted.append(sticky)
            time.sleep(0)

    planter = threading.Thread(target=plant)
    planter.start()
    try:
        results = [run(site, base) for _ in range(6)]
    finally:
        ended.set()
        planter.join()
    for done in results:
        if done.returncode == 0:
            made = Path(done.stdout.strip())
            assert os.listdir(made.parent) == [made.name]
            assert made.stat().st_uid == site.alice.uid
        else:
            assert done.stdout == ""
            assert "entries instead of" in done.stderr
    assert len(list(base.iterdir())) == sum(done.returncode == 0 for done in results)


def test_a_command_line_is_understood_in_any_order():
    wanted = mkgltempdir.Wanted(["-r", "/x", "-f"])
    assert (wanted.remove, wanted.force, wanted.place) == (True, True, "/x")
    wanted = mkgltempdir.Wanted(["/y", "-m", "0711", "-t", "1770"])
    assert (wanted.target_mode, wanted.parent_mode, wanted.place) == (0o1770, 0o711, "/y")
