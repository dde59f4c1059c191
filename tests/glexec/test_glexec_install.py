"""Installation: what it makes, what it refuses, and that it leaves nothing behind."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from glexec import installtexts
from glexec.install import Installed, InstallError, install, uninstall

pytestmark = pytest.mark.needs_root


@pytest.fixture
def base(site) -> Iterator[Path]:
    place = site.base / f"install-{secrets.token_hex(4)}"
    place.mkdir()
    yield place
    shutil.rmtree(place)


@pytest.fixture
def settings(site, base):
    sudoers = Path("/etc/sudoers.d") / f"{site.base.name}-{base.name}"
    yield {
        "linger": True,
        "allowed_callers": [site.pilot.name],
        "certificates_dir": site.grid.certificates_dir,
        "grid_mapfile": "",
        "sudoers_path": sudoers,
        "log": base / "p/log/glexec.log",
    }
    assert not sudoers.exists()


def tree(place: Path) -> list[str]:
    return sorted(str(path.relative_to(place)) for path in place.rglob("*"))


def test_nothing_is_left(base, settings):
    made = install(base / "p", **settings)
    assert made.front == base / "p/bin/glexec"
    assert subprocess.run(["visudo", "-c", "-q"], check=False).returncode == 0
    uninstall(made)
    uninstall(made)
    assert tree(base) == []


def test_everything_is_roots(base, settings):
    old = os.umask(0)
    try:
        made = install(base / "p", **settings)
    finally:
        os.umask(old)
    for path in [base / "p", *(base / "p").rglob("*"), made.sudoers]:
        found = path.stat()
        assert (found.st_uid, found.st_gid) == (0, 0)
        assert found.st_mode & 0o022 == 0, path
    assert made.configuration.stat().st_mode & 0o777 == 0o600
    assert list((base / "p").rglob("*.pyc"))
    uninstall(made)


def test_a_tight_umask_does_not_lock_callers_out(base, settings, site):
    old = os.umask(0o077)
    try:
        made = install(
            base / "p", **{**settings, "grid_mapfile": f'"{site.users["Alice"].identity}" {site.alice.name}\n'}
        )
    finally:
        os.umask(old)
    assert site.call("/bin/true", installed=made) == (0, b"", b"")
    uninstall(made, remove_log=True)


def test_it_can_be_renewed_in_place(base, settings, site):
    install(base / "p", **settings)
    mapped = f'"{site.users["Alice"].identity}" {site.alice.name}\n'
    made = install(base / "p", **{**settings, "linger": False, "grid_mapfile": mapped})
    assert site.call("/bin/true", installed=made).code == 0
    assert site.last("decision", installed=made)["linger"] is False
    assert Installed.load(base / "p") == made
    uninstall(made)
    assert tree(base) == ["p", "p/log", "p/log/glexec.log"]  # the record stays unless told otherwise


def test_the_log_goes_when_asked(base, settings):
    made = install(base / "p", **settings)
    made.log.write_text("x")
    uninstall(made, remove_log=True)
    assert tree(base) == []


def test_what_others_put_there_stays(base, settings):
    made = install(base / "p", **settings)
    (base / "p/bin/theirs").write_text("x")
    made.sudoers.write_text("# somebody else's\n")
    uninstall(made)
    assert tree(base) == ["p", "p/bin", "p/bin/theirs"]
    assert made.sudoers.exists()
    made.sudoers.unlink()


@pytest.mark.parametrize("what", ["prefix", "sudoers"])
def test_nothing_of_others_is_overwritten(base, settings, what):
    if what == "prefix":
        (base / "p").mkdir()
        (base / "p/file").write_text("theirs")
    else:
        settings["sudoers_path"].write_text("# theirs\n")
    with pytest.raises(InstallError):
        install(base / "p", **settings)
    if what == "prefix":
        assert tree(base) == ["p", "p/file"]
    else:
        assert settings["sudoers_path"].read_text() == "# theirs\n"
        assert tree(base) == []
        settings["sudoers_path"].unlink()


@pytest.mark.parametrize("which", ["prefix", "parent", "owner", "link"])
def test_a_place_that_others_can_write_is_refused(base, settings, site, which):
    place = base / "q" / "p"
    place.mkdir(parents=True)
    if which == "prefix":
        place.chmod(0o777)
    elif which == "parent":
        place.parent.chmod(0o777)
    elif which == "owner":
        os.chown(place.parent, site.pilot.uid, 0)
    else:
        (base / "r").symlink_to(place.parent)
        os.lchown(base / "r", site.pilot.uid, 0)
        place = base / "r" / "p"
    before = tree(base)
    with pytest.raises(InstallError):
        install(place, **{**settings, "log": place / "log"})
    assert tree(base) == before


def test_below_a_sticky_directory_is_fine(base, settings):
    base.chmod(0o1777)
    made = install(base / "p", **settings)
    uninstall(made)
    assert tree(base) == []


@pytest.mark.parametrize(
    "change",
    [
        {"allowed_callers": []},
        {"allowed_callers": ["a, b ALL=(ALL) NOPASSWD: ALL #"]},
        {"allowed_callers": ["ALL\nx"]},
        {"preserve_env_variables": ('A" B',)},
        {"sudoers_path": Path("/etc/sudoers.d/a.b")},
        {"log": Path("/nowhere/log")},
        {"log": Path("relative")},
        {"certificates_dir": Path("/a b")},
        {"python": Path("/bin/false")},
    ],
)
def test_wrong_words_install_nothing(base, settings, change):
    with pytest.raises(InstallError):
        install(base / "p", **{**settings, **change})
    assert tree(base) == []


def test_what_sudo_refuses_is_taken_back(base, settings, monkeypatch):
    monkeypatch.setattr(installtexts, "_DEFAULTS", "no_such_setting=1, ((")
    with pytest.raises(InstallError, match="sudo refuses"):
        install(base / "p", **settings)
    assert tree(base) == []


def test_what_a_kill_left_is_taken_away(base, settings):
    """The manifest comes first: half an installation can be removed, or completed."""
    made = install(base / "p", **settings)
    made.front.unlink()
    shutil.rmtree(made.root_part.parent)
    made.sudoers.unlink()
    uninstall(Installed.load(base / "p"))
    assert tree(base) == []
    with pytest.raises(InstallError):
        Installed.load(base / "p")
