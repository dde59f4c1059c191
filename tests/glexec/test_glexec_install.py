"""Installation: what it makes, what it refuses, and that it leaves nothing behind."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from glexec import installtexts, siteinstall
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


# The command


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def command(capsys) -> Callable[..., Done]:
    """`sailplane site-install` in this process."""

    def run(*arguments: str | Path) -> Done:
        code = siteinstall.main([str(argument) for argument in arguments])
        return Done(code, *capsys.readouterr())

    return run


def test_the_command_is_one_of_sailplanes_and_runs_no_code_of_the_directory(base, words, tmp_path):
    (tmp_path / "glexec.py").write_text("raise SystemExit(42)")
    sailplane = Path(sys.executable).with_name("sailplane")
    done = subprocess.run([sailplane, "site-install", *words], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Nothing was changed" in done.stdout
    assert tree(base) == ["grid-mapfile"]


@pytest.fixture
def words(site, base, settings) -> list[str | Path]:
    grid_map = base / "grid-mapfile"
    grid_map.write_text(f'"{site.users["Alice"].identity}" {site.alice.name}\n')
    return [
        "--prefix", base / "p", "--caller", site.pilot.name, "--certificates-dir", site.grid.certificates_dir,
        "--grid-mapfile", grid_map, "--sudoers", settings["sudoers_path"],
    ]  # fmt: skip


def test_the_command_shows_first_and_does_it_when_told(command, site, base, words):
    done = command(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Nothing was changed" in done.stdout
    for shown in ("(passes visudo)", "glexec_get_account:", f"user_white_list = {site.pilot.name}", "NOPASSWD"):
        assert shown in done.stdout
    assert tree(base) == ["grid-mapfile"]
    assert command(*words, "--apply").returncode == 0
    made = Installed.load(base / "p")
    assert not made.grid_mapfile.exists()  # the site's own is used where it lies
    assert site.call("/usr/bin/id", "-u", installed=made).out == b"%d\n" % site.alice.uid
    again = command(*words, "--linger", "no", "--set", "silent_logging=yes", "--apply")
    assert again.returncode == 0
    assert "renew" in again.stdout
    assert site.call("/bin/true", installed=made, env=site.environment("eve")) == (203, b"", b"")
    shown = command("--remove", "--remove-log", "--prefix", base / "p")
    assert f"remove  {made.front}" in shown.stdout
    assert made.front.exists()
    assert command("--remove", "--remove-log", "--prefix", base / "p", "--apply").returncode == 0
    assert tree(base) == ["grid-mapfile"]


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--set", "linger=perhaps"], "linger is neither yes nor no"),
        (["--set", "nonsense"], "not KEY=VALUE"),
        (["--caller", "a b"], "not the name of an account"),
        (["--caller", "ALL"], "not the name of an account"),
        (["--policy", "/etc/passwd"], "glexec_get_account"),
        (["--policy", "/nowhere/db"], "cannot be read"),
        (["--group-mapfile", "/etc/passwd"], "belong together"),
        (["--gridmapdir", "/nowhere/gridmapdir"], "No such file"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_changed(command, base, words, more, why):
    done = command(*words, *more, "--apply")
    assert done.returncode == 1
    assert why in done.stderr
    assert tree(base) == ["grid-mapfile"]


@pytest.mark.parametrize("option", ["--grid-mapfile", "--ban-dn", "--gridmapdir", "--certificates-dir", "--voms-dir"])
def test_what_others_can_write_is_not_believed(command, site, base, words, option):
    place = base / "open"
    if option in ("--grid-mapfile", "--ban-dn"):
        place.write_text("")
        place.chmod(0o666)
    else:
        place.mkdir()
        os.chown(place, site.pilot.uid, 0)
    done = command(*words, option, place, "--apply")
    assert done.returncode == 1
    assert str(place) in done.stderr
    assert not (base / "p").exists()


@pytest.mark.slow
def test_pool_accounts_and_a_vo_make_a_policy_that_both_follow(command, site, base, words):
    directory, groups, accounts = base / "gridmapdir", base / "groups", base / "accounts"
    directory.mkdir()
    (directory / f"{site.bob.name}").touch()
    groups.write_text("")
    accounts.write_text("")
    ban = base / "ban"
    ban.write_text(f'"{site.users["Bob"].identity}"\n')
    more = [
        "--gridmapdir",
        directory,
        "--group-mapfile",
        groups,
        "--vo-mapfile",
        accounts,
        "--ban-dn",
        ban,
        "--ban-fqan",
        ban,
    ]
    for judge in ("lcmaps", "native"):
        assert command(*words, *more, "--decided-by", judge, "--apply").returncode == 0
        made = Installed.load(base / "p")
        # No FQAN, no pool for this DN: its local account in the end.
        assert site.call("/usr/bin/id", "-u", installed=made).out == b"%d\n" % site.alice.uid, judge
        assert site.call("/bin/true", installed=made, env=site.environment("bob")).code == 203
        assert site.last("decision", installed=made)["result"] == "denied"
    uninstall(Installed.load(base / "p"), remove_log=True)


def test_wrong_words_of_the_command(command, base):
    assert command("--nonsense").returncode == 100
    assert command("--help").returncode == 0
    assert command("--remove", "--prefix", base / "nothing").returncode == 1
