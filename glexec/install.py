"""Put glexec and mkgltempdir on a node and take them away again, as root.

Everything lands under one root-owned prefix, plus one sudoers file. `plan` looks at everything and touches
nothing; `apply` writes a manifest before anything else, so that an installation that was cut short can
be taken away by the next one. Overwrites and removes only what it made itself. Runs on the project's
Python, not on the path of a call.
"""

import json
import os
import re
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glexec import conf, installtexts, policy, trust
from glexec.codes import Failure
from glexec.installtexts import MARK, Wish

VERSION = "0.1"
_SOURCE = Path(__file__).resolve().parent
_MANIFEST = ".glexec-manifest.json"
# What a node's package consists of: everything but the installation.
_NOT_ON_NODES = ("install", "installtexts", "siteinstall")
_MODULES = tuple(sorted(file.stem for file in _SOURCE.glob("*.py") if file.stem not in _NOT_ON_NODES))
# mkgltempdir works with the code of the starter's sandboxes: copies, because nothing of ours imports another domain.
_WRAPPER = tuple(sorted(file.name for file in (_SOURCE.parent / "jobwrapper").glob("*.py")))
_PLACES = _SOURCE.parent / "starter/places.py"
_SAFE_PATH = re.compile(r"/[A-Za-z0-9._/+-]+\Z")  # needs no quoting in sh, sudoers and LCMAPS
_ACCOUNT = re.compile(r"\.?[A-Za-z_][A-Za-z0-9_.-]*\Z")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_PYTHON, _SUDO = Path("/usr/bin/python3"), Path("/usr/bin/sudo")


class InstallError(Exception):
    """Nothing was installed, or nothing that is not ours was touched: the text says why."""


@dataclass(frozen=True)
class Installed:
    """What an installation consists of; `load` reads it back from its prefix."""

    prefix: Path
    front: Path
    root_part: Path
    configuration: Path
    lcmaps_db: Path
    grid_mapfile: Path
    log: Path
    sudoers: Path
    files: tuple[Path, ...]

    @property
    def library(self) -> Path:
        """What the programs are made of."""
        return self.root_part.parent

    @property
    def mkgltempdir(self) -> Path:
        return self.front.with_name("mkgltempdir")

    @classmethod
    def of(cls, prefix: Path, sudoers: Path, log: Path) -> "Installed":
        library = prefix / "libexec/sailplane"
        front, root_part = prefix / "bin/glexec", prefix / "libexec/sailplane/glexec-root"
        configuration = prefix / "etc/glexec.conf"
        lcmaps_db, grid_mapfile = prefix / "etc/lcmaps.db", prefix / "etc/grid-mapfile"
        tools = tuple(prefix / "bin" / name for name in ("mkgltempdir", "glexec_wrapenv.pl", "glexec_unwrapenv.pl"))
        modules = tuple(library / "glexec" / f"{name}.py" for name in _MODULES)
        copies = (library / "places.py", *(library / "jobwrapper" / name for name in _WRAPPER))
        own = (front, root_part, *tools, configuration, lcmaps_db, grid_mapfile, library / "word")
        files = (*own, *modules, *copies)
        return cls(prefix, front, root_part, configuration, lcmaps_db, grid_mapfile, log, sudoers, files)

    @classmethod
    def load(cls, prefix: Path) -> "Installed":
        """The installation in `prefix`; InstallError if there is none of ours."""
        try:
            found = json.loads((prefix / _MANIFEST).read_text())
            return cls.of(Path(found["prefix"]), Path(found["sudoers"]), Path(found["log"]))
        except (OSError, ValueError, KeyError, TypeError):
            raise InstallError(f"{prefix}: no installation of ours") from None


@dataclass(frozen=True)
class File:
    """One file to be written, root-owned."""

    path: Path
    text: str
    mode: int


@dataclass(frozen=True)
class Plan:
    """An installation that can be made: what `apply` would write."""

    made: Installed
    files: tuple[File, ...]
    sudoers: str
    python: Path
    warnings: tuple[str, ...]


def install(
    prefix: Path,
    *,
    linger: bool,
    allowed_callers: list[str],
    certificates_dir: Path,
    grid_mapfile: str | Path,
    sudoers_path: Path,
    log: Path,
    preserve_env_variables: tuple[str, ...] = (),
    lcmaps_db: str | None = None,
    lcmaps_timeout_s: int = 30,
    python: Path = _PYTHON,
    sudo: Path = _SUDO,
    **more: Any,
) -> Installed:
    """Install, or renew an installation of ours in the same place: `plan` and `apply`.

    Args:
        prefix, sudoers_path, log: see `plan`. The others, and `more`: see `installtexts.Wish`.

    Raises InstallError with nothing left behind, or with the old installation as it was.
    """
    wish = Wish(
        linger=linger,
        callers=tuple(allowed_callers),
        certificates_dir=certificates_dir,
        grid_mapfile=grid_mapfile,
        kept_variables=preserve_env_variables,
        policy=lcmaps_db,
        timeout_s=lcmaps_timeout_s,
        **more,
    )
    return apply(plan(prefix, wish, sudoers_path=sudoers_path, log=log, python=python, sudo=sudo))


def plan(
    prefix: Path, wish: Wish, *, sudoers_path: Path, log: Path, python: Path = _PYTHON, sudo: Path = _SUDO
) -> Plan:
    """Look whether it can be done, and make the texts; touches nothing.

    Args:
        prefix: root-owned, writable by nobody else, like all directories above it (sticky ones
            may be); made if it does not exist; otherwise empty or an installation of ours.
        sudoers_path: a new file in a directory that sudo reads; no dot or ~ in its name.
        log: its directory is made inside the prefix, and must exist and be root's elsewhere.

    Raises InstallError.
    """
    made = Installed.of(prefix, sudoers_path, log)
    _check_words(made, wish, python, sudo)
    _check_places(made, wish, python, sudo)
    own = isinstance(wish.grid_mapfile, Path)
    grid_mapfile = wish.grid_mapfile if isinstance(wish.grid_mapfile, Path) else made.grid_mapfile
    db = installtexts.policy_text(wish, grid_mapfile, _modules_dir())
    settings = installtexts.configuration(wish, made.lcmaps_db, made.log)
    files = [
        File(prefix / _MANIFEST, _manifest(made), 0o600),
        *([] if own else [File(made.grid_mapfile, str(wish.grid_mapfile), 0o644)]),
        File(made.lcmaps_db, db, 0o644),
        File(made.configuration, settings, 0o600),
        *_programs(made, python, sudo),
    ]
    warnings = _check_texts(settings, db, made)
    text = installtexts.sudoers(wish, prefix, made.root_part)
    _check_sudoers(text)
    return Plan(made, tuple(files), text, python, warnings)


def _modules_dir() -> str:
    """Where this node has LCMAPS's plugins, or would have them."""
    return next((path for path in policy.MODULE_DIRECTORIES if os.path.isdir(path)), policy.MODULE_DIRECTORIES[0])


def apply(what: Plan) -> Installed:
    """Write it. Raises InstallError with nothing left behind, or with the old installation as it was."""
    made = what.made
    is_new = not (made.prefix / _MANIFEST).exists()
    try:
        for file in what.files:
            _write(file.path, file.text, file.mode)
        _compile(made, what.python)
        _make_directory(made.log.parent)
        _write_sudoers(made, what.sudoers)
    except BaseException:  # whatever it was, a half installation is taken away
        if is_new:
            uninstall(made)
        raise
    return made


def uninstall(installed: Installed, *, remove_log: bool = False) -> None:
    """Take away what `install` made; nothing if that is gone already. The log stays unless asked.

    A prefix without our manifest is not touched.
    """
    if not (installed.prefix / _MANIFEST).exists():
        return
    installed = Installed.load(installed.prefix)
    if _is_our_sudoers(installed):
        installed.sudoers.unlink()
    for file in installed.files:
        file.unlink(missing_ok=True)
    for name in ("glexec", "jobwrapper", ""):
        shutil.rmtree(installed.library / name / "__pycache__", ignore_errors=True)
    if remove_log:
        installed.log.unlink(missing_ok=True)
    (installed.prefix / _MANIFEST).unlink()
    directories = {installed.log.parent} if installed.prefix in installed.log.parents else set()
    for file in installed.files:
        directories.update(above for above in file.parents if installed.prefix in above.parents)
    for directory in [*sorted(directories, key=lambda one: -len(one.parts)), installed.prefix]:
        try:
            directory.rmdir()
        except OSError:
            continue  # gone, or something of others is in it


# Checks: nothing has been touched yet.


def _check_words(made: Installed, wish: Wish, python: Path, sudo: Path) -> None:
    for path in (made.prefix, made.log, made.sudoers, *wish.believed, python, sudo):
        if not _SAFE_PATH.match(str(path)) or ".." in path.parts:
            raise InstallError(f"{path}: not an absolute path of letters, digits and ._+-")
    if "." in made.sudoers.name:
        raise InstallError(f"{made.sudoers}: sudo ignores file names with a dot")
    for name in wish.callers:
        if not _ACCOUNT.match(name) or name in ("ALL", "root"):
            raise InstallError(f"{name!r}: not the name of an account, or of a group after a dot")
    for name in wish.kept_variables:
        if not _VARIABLE.match(name):
            raise InstallError(f"{name!r}: not the name of a variable")
    if not wish.callers:
        raise InstallError("nobody may call: name an account or .GROUP by --caller")
    if (wish.group_mapfile is None) != (wish.vo_mapfile is None):
        raise InstallError("a map of groups and a map of VO accounts belong together")


def _check_places(made: Installed, wish: Wish, python: Path, sudo: Path) -> None:
    if os.geteuid() != 0:
        raise InstallError("only root can install glexec")
    prefix = made.prefix
    existing = prefix
    while not existing.exists():
        existing = existing.parent
    is_sticky_above = existing != prefix and existing.lstat().st_mode & stat.S_ISVTX
    outside = [made.log.parent] if prefix not in made.log.parents else []
    # Whatever is believed, run or written to must be root's alone.
    for path in (
        existing.parent if is_sticky_above else existing,
        *outside,
        *wish.believed,
        python,
        sudo,
        made.sudoers.parent,
    ):
        wrong = trust.problem(str(path))
        if wrong:
            raise InstallError(wrong)
    if prefix.exists() and not (prefix / _MANIFEST).exists() and any(prefix.iterdir()):
        raise InstallError(f"{prefix} is not empty and not an installation of ours")
    if made.sudoers.exists() and not _is_our_sudoers(made):
        raise InstallError(f"{made.sudoers} exists and is not ours")


def _check_texts(configuration: str, db: str, made: Installed) -> tuple[str, ...]:
    """What a call would say of them; its warnings."""
    warnings: list[str] = []
    try:
        warnings += conf.parse(configuration.encode()).warnings
        text = policy.adapted(db, installtexts.POLICY, warnings)
        policy.require_policy(text, installtexts.POLICY)
        policy.parse(text)
    except Failure as failure:
        raise InstallError(failure.text) from None
    places = [place for place in policy.plugin_places(text) if os.path.lexists(place)]
    for believed in [*policy.believed(text), *places]:
        if made.prefix not in Path(believed).parents:
            wrong = trust.problem(believed)
            if wrong:
                raise InstallError(f"the policy names {wrong}")
    return tuple(warnings)


def _check_sudoers(text: str) -> None:
    """Does sudo like it by itself?"""
    with tempfile.TemporaryDirectory() as directory:
        draft = Path(directory, "sudoers")
        draft.write_text(text)
        draft.chmod(0o440)
        complaint = _complaint("-f", str(draft))
    if complaint:
        raise InstallError(f"sudo refuses the new settings: {complaint}")


def _is_our_sudoers(made: Installed) -> bool:
    try:
        return made.sudoers.read_text().startswith(f"{MARK}{made.prefix}\n")
    except (OSError, UnicodeDecodeError):
        return False


# Texts.


def _manifest(made: Installed) -> str:
    return json.dumps({"prefix": str(made.prefix), "sudoers": str(made.sudoers), "log": str(made.log)})


def _programs(made: Installed, python: Path, sudo: Path) -> list[File]:
    """What is run, and what it is made of."""
    library, front = made.library, (_SOURCE / "front.sh").read_text("utf-8")
    for mark, value in {
        "CONF": made.configuration,
        "LIBRARY": library,
        "VERSION": VERSION,
        "SUDO": sudo,
        "PYTHON": python,
        "ROOT": made.root_part,
        "WORD": library / "word",
    }.items():
        front = front.replace(f"@{mark}@", str(value))
    calls = {
        made.root_part: f"glexec.start.main({str(made.configuration)!r})",
        made.mkgltempdir: f"glexec.mkgltempdir.main({str(made.front)!r}, {str(library)!r})",
        made.front.with_name("glexec_wrapenv.pl"): "glexec.wrapenv.main_wrap()",
        made.front.with_name("glexec_unwrapenv.pl"): "glexec.wrapenv.main_unwrap()",
    }
    files = [
        File(library / "glexec" / f"{name}.py", (_SOURCE / f"{name}.py").read_text("utf-8"), 0o644) for name in _MODULES
    ]
    sources = {library / "jobwrapper" / name: _SOURCE.parent / "jobwrapper" / name for name in _WRAPPER}
    for path, source in {library / "places.py": _PLACES, **sources}.items():
        files.append(File(path, source.read_text("utf-8"), 0o644))
    files.append(File(library / "word", "", 0o644))
    files += [File(path, installtexts.program(python, library, call), 0o755) for path, call in calls.items()]
    return [*files, File(made.front, front, 0o755)]


# Files.


def _write(path: Path, text: str, mode: int) -> None:
    """Replace a file atomically, root-owned."""
    _make_directory(path.parent)
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with open(file, "w", encoding="utf-8") as stream:
        os.fchmod(file, mode)
        os.fchown(file, 0, 0)
        stream.write(text)
    temporary.replace(path)


def _make_directory(path: Path) -> None:
    """A directory that all may enter, whatever our umask; one that exists stays as it is."""
    if not path.exists():
        _make_directory(path.parent)
        path.mkdir()
        path.chmod(0o755)


def _compile(made: Installed, python: Path) -> None:
    """By the interpreter that will run it: another one's files would be compiled again at each call."""
    directories = [str(made.library / name) for name in ("glexec", "jobwrapper", "places.py")]
    command = [str(python), "-IS", "-m", "compileall", "-q", *directories]
    done = subprocess.run(command, capture_output=True, text=True, umask=0o022)
    if done.returncode:
        raise InstallError(f"{python} cannot compile the root part: {done.stdout}{done.stderr}"[:500])


def _write_sudoers(made: Installed, text: str) -> None:
    """The sudoers file last, and only if sudo likes the whole of its settings with it."""
    old = made.sudoers.read_text() if made.sudoers.exists() else None
    _write(made.sudoers, text, 0o440)
    complaint = _complaint()
    if complaint:
        if old is None:
            made.sudoers.unlink()
        else:
            _write(made.sudoers, old, 0o440)
        raise InstallError(f"sudo refuses its settings as a whole: {complaint}")


def _complaint(*arguments: str) -> str:
    """What visudo says against a file, or against the node's whole settings; empty if they are good."""
    done = subprocess.run(["visudo", "-c", "-q", *arguments], capture_output=True, text=True)
    return (done.stderr.strip() or "visudo failed")[:500] if done.returncode else ""
