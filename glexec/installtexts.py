"""What an installation writes: settings, policy, sudoers, programs. Pure.

The policy's parts are those of the field: verify the chain, refuse the banned, then map by the
grid-mapfile to local or pool accounts, or by VOMS attributes where group and VO maps are named.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from glexec import conf

MARK = "# Made by the installation of Sailplane's glexec in "
POLICY = "glexec_get_account"
# sudo sets the limit on core files to 0. `rlimit_core=user` would keep the caller's, but complains
# on stderr at every call where root lacks CAP_SYS_RESOURCE (containers), and old sudos refuse it.
_DEFAULTS = "closefrom_override, !use_pty, !pam_session, !pam_setcred, !requiretty"


@dataclass(frozen=True)
class Wish:
    """What the administrator asks for.

    Attributes:
        callers: accounts (`.group` for a group) that sudo and glexec let call.
        grid_mapfile: its text, which is written; or the path of the site's own.
        policy: the LCMAPS db's text with a policy `glexec_get_account`; None: made of what follows.
        gridmapdir: pool accounts by leases in it. ban_dn, ban_fqan: ban files.
        group_mapfile, vo_mapfile: FQANs to groups and to accounts; both or none.
        limited: are limited proxies let through?
    """

    linger: bool
    callers: tuple[str, ...]
    certificates_dir: Path
    grid_mapfile: str | Path
    kept_variables: tuple[str, ...] = ()
    create_target_proxy: bool = True
    policy: str | None = None
    gridmapdir: Path | None = None
    ban_dn: Path | None = None
    ban_fqan: Path | None = None
    group_mapfile: Path | None = None
    vo_mapfile: Path | None = None
    voms_dir: Path | None = None
    limited: bool = True
    decided_by: str = conf.AUTO
    timeout_s: int = 30
    log_only: bool = False
    more: dict[str, str] = field(default_factory=dict)  # further keys of glexec.conf

    @property
    def believed(self) -> tuple[Path, ...]:
        """The site's own files and directories that are named."""
        named = (self.gridmapdir, self.ban_dn, self.ban_fqan, self.group_mapfile, self.vo_mapfile, self.voms_dir)
        own = (self.grid_mapfile,) if isinstance(self.grid_mapfile, Path) else ()
        return (self.certificates_dir, *own, *(path for path in named if path is not None))


def policy_text(wish: Wish, grid_mapfile: Path, modules_dir: str) -> str:
    """The LCMAPS db; `modules_dir` is where the node has LCMAPS's plugins."""
    if wish.policy is not None:
        return wish.policy
    limited = "--allow-limited-proxy" if wish.limited else "--disallow-limited-proxy"
    plugins = [("verify_proxy", "verify_proxy", f"-certdir {wish.certificates_dir}", limited)]
    checks = ["verify_proxy"]
    for name, file in (("ban_dn", wish.ban_dn), ("ban_fqan", wish.ban_fqan)):
        if file is not None:
            plugins.append((name, name, f"-banmapfile {file}", ""))
            checks.append(name)
    maps = _maps(wish, grid_mapfile, plugins)
    plugins.append(("good", "dummy_good", "", ""))
    lines = ["# The policy that decides who is mapped to which account.", f"path = {modules_dir}"]
    for name, module, *options in plugins:
        lines.append(f'{name} = "lcmaps_{module}.mod"')
        lines += [f'    " {option}"' for option in options if option]
    lines += ["", f"{POLICY}:"]
    lines += [f"{here} -> {after}" for here, after in zip(checks, [*checks[1:], maps[0][0]], strict=True)]
    lines += [f"{name} -> {after}{f' | {otherwise}' if otherwise else ''}" for name, after, otherwise in maps]
    return "\n".join(lines) + "\n"


def _maps(wish: Wish, grid_mapfile: Path, plugins: list[tuple[str, str, str, str]]) -> list[tuple[str, str, str]]:
    """The rules that map, as (state, after success, after failure); their plugins are appended."""
    rules = []
    if wish.group_mapfile is not None:
        # Maps that are told nothing of FQANs fail, and the DN decides.
        plugins.append(("vo_group", "voms_localgroup", f"-groupmapfile {wish.group_mapfile}", "-mapmin 1"))
        kind = "voms_localaccount" if wish.gridmapdir is None else "voms_poolaccount"
        leases = "" if wish.gridmapdir is None else f"-gridmapdir {wish.gridmapdir}"
        plugins.append(("vo_account", kind, f"-gridmapfile {wish.vo_mapfile}", leases))
        first = "local" if wish.gridmapdir is None else "pool"
        rules += [("vo_group", "vo_account", first), ("vo_account", "good", "")]
    if wish.gridmapdir is not None:
        plugins.append(("pool", "poolaccount", f"-gridmapfile {grid_mapfile}", f"-gridmapdir {wish.gridmapdir}"))
        rules.append(("pool", "good", "local"))
    plugins.append(("local", "localaccount", f"-gridmapfile {grid_mapfile}", ""))
    return [*rules, ("local", "good", "")]


def configuration(wish: Wish, lcmaps_db: Path, log: Path) -> str:
    """glexec.conf."""
    text = f"""# Read at every call, from here only.
[glexec]
# yes: stay as a supervisor until the payload and all of its processes have ended. no: become it.
linger = {_word(wish.linger)}
# Accounts that may call, and .group for the members of a group. The sudoers file must agree.
user_white_list = {", ".join(wish.callers)}
# Variables beside GLEXEC_* that the payload gets from its caller. The sudoers file must agree.
preserve_env_variables = {", ".join(wish.kept_variables) or "no"}
# yes: leave a copy of the credential for the payload, unless the caller says /dev/null.
create_target_proxy = {_word(wish.create_target_proxy)}
# yes: decide and log, but run the payload as its caller. Isolates nothing.
log_only = {_word(wish.log_only)}
# auto: LCMAPS where it is installed, else the code that comes with this glexec. Or lcmaps, or native.
decided_by = {wish.decided_by}
lcmaps_db_file = {lcmaps_db}
lcmaps_get_account_policy = {POLICY}
certificates_dir = {wish.certificates_dir}
# Seconds after which a policy that does not answer counts as broken.
lcmaps_timeout = {wish.timeout_s}
# One JSON line an event.
log_file = {log}
"""
    if wish.voms_dir is not None:
        text += f"voms_dir = {wish.voms_dir}\n"
    return text + "".join(f"{key} = {value}\n" for key, value in wish.more.items())


def _word(value: bool) -> str:
    return "yes" if value else "no"


def sudoers(wish: Wish, prefix: Path, root_part: Path) -> str:
    """The one program that callers may run as root, and what sudo lets through."""
    who = ", ".join(f"%{name[1:]}" if name.startswith(".") else name for name in wish.callers)
    variables = " ".join(("GLEXEC_*", "X509_USER_PROXY", *wish.kept_variables))
    return f"""{MARK}{prefix}
Defaults!{root_part} {_DEFAULTS}
Defaults!{root_part} env_keep += "{variables}"
{who} ALL=(root) NOPASSWD: {root_part}
"""


def program(python: Path, library: Path, call: str) -> str:
    """A program of the installation: a function of the package, with the interpreter and nothing of its caller's."""
    module, function = call.partition("(")[0].rsplit(".", 1)
    start = f"import sys; sys.path.insert(0, {str(library)!r})"
    arguments = call.partition("(")[2]
    return f"#!{python} -IS\n{start}\nfrom {module} import {function}; {function}({arguments}\n"
