"""`sailplane site-install`: what would be installed on this node, and with --apply, do it.

A program of its own, started by the `sailplane` command, because no other package may import this one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from glexec import conf
from glexec.install import Installed, InstallError, Plan, apply, plan, uninstall
from glexec.installtexts import Wish

DONE, FAILED, WRONG_USAGE = 0, 1, 100
_TEXTS = ("glexec.conf", "lcmaps.db")  # shown in full; the rest is programs


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    try:
        wanted = _parser().parse_args(arguments)
    except SystemExit as done:
        return WRONG_USAGE if done.code else DONE
    try:
        return _remove(wanted) if wanted.remove else _install(wanted)
    except InstallError as error:
        print(f"sailplane site-install: {error}; nothing was changed", file=sys.stderr)
        return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sailplane site-install",
        description="Install glexec and mkgltempdir on this node, as root. Without --apply nothing is changed: "
        "you see what would be written. Exit status: 0 done, 1 it could not be, 100 wrong usage.",
        epilog="example: sailplane site-install --caller .pilots --gridmapdir /etc/grid-security/gridmapdir"
        " --ban-dn /etc/grid-security/ban_users.db; the same with --apply to do it, and later"
        " sailplane site-install --remove --apply",
    )
    add = parser.add_argument

    def path(name: str, words: str, default: Path | None = None) -> None:
        add(
            name, type=Path, metavar="PATH", default=default, help=words + ("; default: %(default)s" if default else "")
        )

    add("--apply", action="store_true", help="do it")
    add("--remove", action="store_true", help="take the installation in --prefix away")
    add("--remove-log", action="store_true", help="with --remove: the log, too")
    path("--prefix", "where it lies", Path("/opt/sailplane-glexec"))
    add("--caller", action="append", default=[], metavar="ACCOUNT", help="who may call; .GROUP for a group; repeat")
    add("--linger", choices=("yes", "no"), default="yes", help="stay beside the payload; default: yes")
    add("--log-only", action="store_true", help="decide and log, but do not switch")
    path("--certificates-dir", "the CAs", Path("/etc/grid-security/certificates"))
    path("--voms-dir", "the .lsc files of the VOs")
    path("--grid-mapfile", "DNs to accounts or pools", Path("/etc/grid-security/grid-mapfile"))
    path("--gridmapdir", "pool accounts by leases in it")
    path("--ban-dn", "DNs that are refused")
    path("--ban-fqan", "FQANs that are refused")
    path("--group-mapfile", "FQANs to groups")
    path("--vo-mapfile", "FQANs to accounts or pools")
    add("--no-limited", action="store_true", help="refuse limited proxies (stock HTCondor delegates those)")
    path("--policy", "an LCMAPS db of your own, in place of what the maps, bans and limits above make")
    add(
        "--decided-by",
        choices=(conf.AUTO, conf.LCMAPS, conf.NATIVE),
        default=conf.AUTO,
        help="auto: LCMAPS where it is installed; default: %(default)s",
    )
    add("--preserve", action="append", default=[], metavar="NAME", help="a variable that payloads get; repeat")
    add("--no-target-proxy", action="store_true", help="leave payloads no copy of the proxy")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="a further line of glexec.conf; repeat")
    path("--log", "default: PREFIX/log/glexec.log")
    path("--sudoers", "the file that lets callers use sudo for it", Path("/etc/sudoers.d/sailplane-glexec"))
    return parser


def _install(wanted: argparse.Namespace) -> int:
    what = _plan(wanted)
    _show(what)
    if not wanted.apply:
        print("\nNothing was changed. Say --apply to do it.")
        return DONE
    made = apply(what)
    print(f"\nInstalled: {made.front} and {made.mkgltempdir}; log: {made.log}")
    return DONE


def _plan(wanted: argparse.Namespace) -> Plan:
    wish = Wish(
        linger=wanted.linger == "yes",
        callers=tuple(wanted.caller),
        certificates_dir=wanted.certificates_dir,
        grid_mapfile=wanted.grid_mapfile if wanted.policy is None else "",
        kept_variables=tuple(wanted.preserve),
        create_target_proxy=not wanted.no_target_proxy,
        policy=_text(wanted.policy),
        gridmapdir=wanted.gridmapdir,
        ban_dn=wanted.ban_dn,
        ban_fqan=wanted.ban_fqan,
        group_mapfile=wanted.group_mapfile,
        vo_mapfile=wanted.vo_mapfile,
        voms_dir=wanted.voms_dir,
        limited=not wanted.no_limited,
        decided_by=wanted.decided_by,
        log_only=wanted.log_only,
        more=_pairs(wanted.set),
    )
    log = wanted.log or wanted.prefix / "log/glexec.log"
    return plan(wanted.prefix, wish, sudoers_path=wanted.sudoers, log=log)


def _text(policy: Path | None) -> str | None:
    if policy is None:
        return None
    try:
        return policy.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InstallError(f"{policy} cannot be read: {error}") from None


def _pairs(given: list[str]) -> dict[str, str]:
    pairs = {}
    for line in given:
        key, equals, value = line.partition("=")
        if not equals or not key.strip() or "\n" in line:
            raise InstallError(f"--set {line!r}: not KEY=VALUE")
        pairs[key.strip()] = value.strip()
    return pairs


def _show(what: Plan) -> None:
    for file in what.files:
        state = "renew" if file.path.exists() else "new  "
        print(f"{state}  {file.mode:04o} root  {file.path}")
    print(f"{'renew' if what.made.sudoers.exists() else 'new  '}  0440 root  {what.made.sudoers}  (passes visudo)")
    for file in what.files:
        if file.path.name in _TEXTS:
            _quote(str(file.path), file.text)
    _quote(str(what.made.sudoers), what.sudoers)
    for warning in what.warnings:
        print(f"\nwarning: {warning}")


def _quote(title: str, text: str) -> None:
    print(f"\n--- {title}")
    print(text, end="")


def _remove(wanted: argparse.Namespace) -> int:
    made = Installed.load(wanted.prefix)
    for path in (*made.files, made.sudoers, *([made.log] if wanted.remove_log else [])):
        if path.exists():
            print(f"remove  {path}")
    if not wanted.apply:
        print("\nNothing was changed. Say --apply to do it.")
        return DONE
    uninstall(made, remove_log=wanted.remove_log)
    return DONE


if __name__ == "__main__":
    sys.exit(main())
