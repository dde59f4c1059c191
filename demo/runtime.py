"""Which interpreter and packages the site's accounts can run, and a copy where they can reach none.

A checkout below a private home directory is out of reach for other accounts. Then the packages
that the daemons need are copied into the site's directory, to be run by an interpreter that
everybody can run. Nothing is copied when everything can be reached.
"""

from __future__ import annotations

import compileall
import os
import re
import shutil
import stat
import sys
import tomllib
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

import attrs

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("cedar", "pilot", "procd", "starter", "startd", "jobwrapper", "pool", "glexec", "demo")
_ENTRIES = {
    "sailplane": "pool.cli",
    "sailplane-startd": "startd.main",
    "sailplane-starter": "starter.main",
    "sailplane-procd": "procd.main",
    "sailplane-pool": "pool.main",
}
_OPEN_DIRECTORY = stat.S_IROTH | stat.S_IXOTH
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class RuntimeMissingError(Exception):
    """No interpreter that the other accounts could run; the text says what to install."""


@attrs.frozen
class Runtime:
    """How to run Sailplane's commands; `environment` is part of every command's."""

    python: Path
    environment: Mapping[str, str]
    packages: Path

    def argv(self, command: str, *arguments: str) -> list[str]:
        """The command line of one of the console commands."""
        start = f"import sys; sys.argv[0] = {command!r}; from {_ENTRIES[command]} import main; sys.exit(main())"
        return [str(self.python), "-c", start, *arguments]


def traversable(path: Path) -> bool:
    """Whether every account can go through every directory above `path`."""
    return all(parent.stat().st_mode & stat.S_IXOTH for parent in path.resolve().parents)


def readable(tree: Path) -> bool:
    """Whether every account can read a tree of ours (only sources and packages; a few hundred files)."""
    for where, _names, files in os.walk(tree):
        if Path(where).stat().st_mode & _OPEN_DIRECTORY != _OPEN_DIRECTORY:
            return False
        if any(not Path(where, file).stat().st_mode & stat.S_IROTH for file in files if file.endswith(".py")):
            return False
    return True


def in_place() -> Runtime:
    """The interpreter and checkout that run this process."""
    return Runtime(Path(sys.executable), {"PYTHONPATH": str(ROOT)}, ROOT)


def reachable(place: Path) -> Runtime:
    """A runtime that every account can use: in place if possible, else copied below `place`.

    Raises:
        RuntimeMissingError: there is no interpreter of this version outside private directories.
    """
    if _interpreter_open(Path(sys.executable)) and _packages_open():
        # The pilot's account may not write here, and what runs in every call of the switch is to start fast.
        compileall.compile_dir(ROOT / "jobwrapper", quiet=1)
        return in_place()
    python = _open_interpreter()
    _copy(place)
    return Runtime(python, {"PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1"}, place)


def _interpreter_open(python: Path) -> bool:
    links = [python, python.resolve(), Path(sys.prefix, "pyvenv.cfg"), Path(metadata.__file__)]
    return all(traversable(path) for path in links) and bool(python.resolve().stat().st_mode & stat.S_IXOTH)


def _packages_open() -> bool:
    outside = [Path(str(found.locate_file(""))) for found in _distributions()]
    ours = [ROOT / name for name in PACKAGES]
    return (
        traversable(ROOT / "x")
        and all(traversable(path / "x") for path in set(outside))
        and all(readable(path) for path in ours)
    )


def _open_interpreter() -> Path:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (Path("/usr/bin", version), Path("/usr/local/bin", version), Path(sys.executable).resolve()):
        if candidate.exists() and traversable(candidate) and traversable(candidate.resolve()):
            return candidate
    raise RuntimeMissingError(f"no {version} that other accounts can run; install it to /usr/bin")


def _distributions() -> list[metadata.Distribution]:
    """Sailplane's dependencies and theirs, without the developers' tools."""
    found: dict[str, metadata.Distribution] = {}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting = _required(project["dependencies"])
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in found:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # for another platform or version; what is needed and missing fails at import
        waiting += _required(found[name].requires or [])
    return list(found.values())


def _required(requirements: Iterable[str]) -> list[str]:
    return [match[0] for text in requirements if "extra ==" not in text and (match := _NAME.match(text))]


def _copy(place: Path) -> None:
    place.mkdir(mode=0o755)
    for distribution in _distributions():
        for file in distribution.files or []:
            source, target = Path(str(distribution.locate_file(file))), place / file
            if ".." not in file.parts and source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        compileall.compile_dir(place / name, quiet=1)
    shutil.copyfile(ROOT / "pyproject.toml", place / "pyproject.toml")
    open_up(place)


def open_up(place: Path) -> None:
    """Readable for all, writable for the owner: the original may have been cloned with a private umask."""
    for where, _names, files in os.walk(place):
        Path(where).chmod(0o755)
        for file in files:
            mode = Path(where, file).stat().st_mode
            Path(where, file).chmod(0o755 if mode & stat.S_IXUSR else 0o644)
