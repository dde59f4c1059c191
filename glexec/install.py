"""Put glexec on a node and take it away again, as root.

Everything lands under one root-owned prefix, plus one sudoers file. A manifest is written before
anything else, so that an installation that was cut short can be taken away by the next one.
Overwrites and removes only what it made itself. Runs on the project's Python, not on the path of
a call.
"""

import json
import os
import re
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from glexec import trust

VERSION = "0.1"
_SOURCE = Path(__file__).resolve().parent
_MANIFEST = ".glexec-manifest.json"
_MARK = "# Made by the installation of Sailplane's glexec in "
# What a node's root part consists of: everything but this module.
_MODULES = tuple(sorted(file.stem for file in _SOURCE.glob("*.py") if file.name != "install.py"))
_SAFE_PATH = re.compile(r"/[A-Za-z0-9._/+-]+\Z")  # needs no quoting in sh, sudoers and LCMAPS
_ACCOUNT = re.compile(r"\.?[A-Za-z_][A-Za-z0-9_.-]*\Z")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_MODULE_DIRECTORIES = ("/usr/lib/lcmaps", "/usr/lib64/lcmaps")  # Debian, EL
# sudo sets the limit on core files to 0. `rlimit_core=user` would keep the caller's, but complains
# on stderr at every call where root lacks CAP_SYS_RESOURCE (containers), and old sudos refuse it.
_DEFAULTS = "closefrom_override, !use_pty, !pam_session, !pam_setcred, !requiretty"


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

    @classmethod
    def of(cls, prefix: Path, sudoers: Path, log: Path) -> "Installed":
        library = prefix / "libexec/sailplane/glexec"
        front, root_part = prefix / "bin/glexec", prefix / "libexec/sailplane/glexec-root"
        configuration = prefix / "etc/glexec.conf"
        lcmaps_db, grid_mapfile = prefix / "etc/lcmaps.db", prefix / "etc/grid-mapfile"
        word = prefix / "libexec/sailplane/word"
        modules = tuple(library / f"{name}.py" for name in _MODULES)
        files = (front, root_part, configuration, lcmaps_db, grid_mapfile, word, *modules)
        return cls(prefix, front, root_part, configuration, lcmaps_db, grid_mapfile, log, sudoers, files)

    @classmethod
    def load(cls, prefix: Path) -> "Installed":
        """The installation in `prefix`; InstallError if there is none of ours."""
        try:
            found = json.loads((prefix / _MANIFEST).read_text())
            return cls.of(Path(found["prefix"]), Path(found["sudoers"]), Path(found["log"]))
        except (OSError, ValueError, KeyError, TypeError):
            raise InstallError(f"{prefix}: no installation of ours") from None


def install(
    prefix: Path,
    *,
    linger: bool,
    allowed_callers: list[str],
    certificates_dir: Path,
    grid_mapfile: str,
    sudoers_path: Path,
    log: Path,
    preserve_env_variables: tuple[str, ...] = (),
    create_target_proxy: bool = True,
    lcmaps_db: str | None = None,
    lcmaps_timeout_s: int = 30,
    python: Path = Path("/usr/bin/python3"),
    sudo: Path = Path("/usr/bin/sudo"),
) -> Installed:
    """Install, or renew an installation of ours in the same place.

    Args:
        prefix: root-owned, writable by nobody else, like all directories above it (sticky ones
            may be); made if it does not exist; otherwise empty or an installation of ours.
        allowed_callers: accounts (`.group` for a group) that sudo and glexec let call.
        grid_mapfile: its text. lcmaps_db: the policy's text, policy `glexec_get_account`; None is
            verify_proxy (limited proxies allowed) and local accounts by the grid-mapfile.
        sudoers_path: a new file in a directory that sudo reads; no dot or ~ in its name.
        log: its directory is made inside the prefix, and must exist and be root's elsewhere.

    Raises InstallError with nothing left behind, or with the old installation as it was.
    """
    made = Installed.of(prefix, sudoers_path, log)
    _check_words(made, allowed_callers, certificates_dir, preserve_env_variables, python, sudo)
    _check_places(made)
    db = lcmaps_db if lcmaps_db is not None else _default_db(made, certificates_dir)
    is_new = not (prefix / _MANIFEST).exists()
    try:
        _write(prefix / _MANIFEST, _manifest(made), 0o600)
        _write(made.grid_mapfile, grid_mapfile, 0o644)
        _write(made.lcmaps_db, db, 0o644)
        settings = _configuration(
            made, linger, allowed_callers, preserve_env_variables, create_target_proxy, lcmaps_timeout_s
        )
        _write(made.configuration, settings, 0o600)
        _write_programs(made, python, sudo)
        _make_directory(made.log.parent)
        _write_sudoers(made, allowed_callers, preserve_env_variables)
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
    shutil.rmtree(installed.prefix / "libexec/sailplane/glexec/__pycache__", ignore_errors=True)
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


def _check_words(
    made: Installed,
    callers: list[str],
    certificates_dir: Path,
    variables: tuple[str, ...],
    python: Path,
    sudo: Path,
) -> None:
    for path in (made.prefix, made.log, made.sudoers, certificates_dir, python, sudo):
        if not _SAFE_PATH.match(str(path)) or ".." in path.parts:
            raise InstallError(f"{path}: not an absolute path of letters, digits and ._+-")
    if "." in made.sudoers.name:
        raise InstallError(f"{made.sudoers}: sudo ignores file names with a dot")
    for name in callers:
        if not _ACCOUNT.match(name):
            raise InstallError(f"{name!r}: not the name of an account, or of a group after a dot")
    for name in variables:
        if not _VARIABLE.match(name):
            raise InstallError(f"{name!r}: not the name of a variable")
    if not callers:
        raise InstallError("no allowed callers")


def _check_places(made: Installed) -> None:
    if os.geteuid() != 0:
        raise InstallError("only root can install glexec")
    prefix = made.prefix
    existing = prefix
    while not existing.exists():
        existing = existing.parent
    is_sticky_above = existing != prefix and existing.lstat().st_mode & stat.S_ISVTX
    wrong = trust.problem(str(existing.parent if is_sticky_above else existing))
    if wrong:
        raise InstallError(wrong)
    if prefix.exists() and not (prefix / _MANIFEST).exists() and any(prefix.iterdir()):
        raise InstallError(f"{prefix} is not empty and not an installation of ours")
    if prefix not in made.log.parents:
        wrong = trust.problem(str(made.log.parent))
        if wrong:
            raise InstallError(wrong)
    if made.sudoers.exists() and not _is_our_sudoers(made):
        raise InstallError(f"{made.sudoers} exists and is not ours")


def _is_our_sudoers(made: Installed) -> bool:
    try:
        return made.sudoers.read_text().startswith(f"{_MARK}{made.prefix}\n")
    except (OSError, UnicodeDecodeError):
        return False


# Texts.


def _manifest(made: Installed) -> str:
    return json.dumps({"prefix": str(made.prefix), "sudoers": str(made.sudoers), "log": str(made.log)})


def _default_db(made: Installed, certificates_dir: Path) -> str:
    directory = next((path for path in _MODULE_DIRECTORIES if Path(path).is_dir()), None)
    if directory is None:
        raise InstallError(f"no LCMAPS plugins in {' or '.join(_MODULE_DIRECTORIES)}")
    return f"""# The policy that decides who is mapped to which account.
path = {directory}
verify_proxy = "lcmaps_verify_proxy.mod"
               " -certdir {certificates_dir}"
               " --allow-limited-proxy"
local = "lcmaps_localaccount.mod"
        " -gridmapfile {made.grid_mapfile}"
good = "lcmaps_dummy_good.mod"

glexec_get_account:
verify_proxy -> local
local -> good
"""


def _configuration(
    made: Installed, linger: bool, callers: list[str], kept: tuple[str, ...], copy: bool, timeout_s: int
) -> str:
    return f"""# Read at every call, from here only.
[glexec]
# yes: stay as a supervisor until the payload and all of its processes have ended. no: become it.
linger = {"yes" if linger else "no"}
# Accounts that may call, and .group for the members of a group. The sudoers file must agree.
user_white_list = {", ".join(callers)}
# Variables beside GLEXEC_* that the payload gets from its caller. The sudoers file must agree.
preserve_env_variables = {", ".join(kept) or "no"}
# yes: leave a copy of the credential for the payload, unless the caller says /dev/null.
create_target_proxy = {"yes" if copy else "no"}
lcmaps_db_file = {made.lcmaps_db}
lcmaps_get_account_policy = glexec_get_account
# Seconds after which a policy that does not answer counts as broken.
lcmaps_timeout = {timeout_s}
# One JSON line an event.
log_file = {made.log}
"""


def _sudoers_text(made: Installed, callers: list[str], kept: tuple[str, ...]) -> str:
    who = ", ".join(f"%{name[1:]}" if name.startswith(".") else name for name in callers)
    variables = " ".join(("GLEXEC_*", "X509_USER_PROXY", *kept))
    return f"""{_MARK}{made.prefix}
Defaults!{made.root_part} {_DEFAULTS}
Defaults!{made.root_part} env_keep += "{variables}"
{who} ALL=(root) NOPASSWD: {made.root_part}
"""


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


def _write_programs(made: Installed, python: Path, sudo: Path) -> None:
    library = made.root_part.parent
    for name in _MODULES:
        _write(library / "glexec" / f"{name}.py", (_SOURCE / f"{name}.py").read_text("utf-8"), 0o644)
    _write(library / "word", "", 0o644)
    entry = f"from glexec.root import main; main({str(made.configuration)!r})"
    root_part = f"#!{python} -IS\nimport sys; sys.path.insert(0, {str(library)!r})\n{entry}\n"
    _write(made.root_part, root_part, 0o755)
    front = (_SOURCE / "front.sh").read_text("utf-8")
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
    _write(made.front, front, 0o755)
    # By the interpreter that will run it: another one's files would be compiled again at each call.
    command = [str(python), "-IS", "-m", "compileall", "-q", str(library / "glexec")]
    done = subprocess.run(command, capture_output=True, text=True, umask=0o022)
    if done.returncode:
        raise InstallError(f"{python} cannot compile the root part: {done.stdout}{done.stderr}"[:500])


def _write_sudoers(made: Installed, callers: list[str], kept: tuple[str, ...]) -> None:
    """The sudoers file last, and only if sudo likes it by itself and the whole of its settings with it."""
    draft, text = made.prefix / "etc/sudoers.new", _sudoers_text(made, callers, kept)
    try:
        _write(draft, text, 0o440)
        complaint = _complaint("-f", str(draft))
        if complaint:
            raise InstallError(f"sudo refuses the new settings: {complaint}")
    finally:
        draft.unlink(missing_ok=True)
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
