"""Two glexecs with one policy, with LCMAPS and without it, and what the tests ask of both.

Who differs from the other is in the tests, with the reason.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from demo.grid import Certified, Grid, key_pem, make_grid, make_proxy, write_private
from demo.grid_voms import VOMS_EXTENSION
from glexec.install import Installed, uninstall

DENIED_WORDS = b"glexec: denied: the site's policy does not map this credential\n"
PILOT_FQAN, PLAIN_FQAN = "/demo/Role=pilot/Capability=NULL", "/demo/Role=NULL/Capability=NULL"


class World(NamedTuple):
    """CAs of all kinds in one directory, their people, a VO, and one glexec for each judge."""

    base: Path
    grid: Grid
    certificates_dir: Path
    voms_dir: Path
    people: Mapping[str, Certified]
    installed: Mapping[str, Installed]


@contextmanager
def made_world(site) -> Iterator[World]:
    """A world below a site, taken down afterwards."""
    base = site.base / "parts"
    grid = make_grid(base)
    people = {name: grid.user(name) for name in ("Alice", "Bob", "Banned", "Barred", "Revoked", "Nobody")}
    people["Rsa"] = grid.user("Rsa", key="rsa")
    # Globus makes no proxies of certificates that were signed with EC keys.
    people["Classic"] = make_grid(base, name="Classic CA", key="rsa").user("Classic", key="rsa")
    people["server"] = grid.host("voms.example.org", key="rsa")
    grid.write_crl([people["Revoked"]])
    people["stale"] = stale_ca(base).user("Stale")
    for name in ("Listless", "Damaged"):
        other = make_grid(base, name=f"{name} CA")
        people[name.lower()] = other.user(name)
        revoked = base / f"certificates/{other.hash}.r0"
        if name == "Damaged":
            revoked.write_text("-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n")
        else:
            revoked.unlink()
            revoked.with_suffix(".signing_policy").unlink()
    narrow = make_grid(base, name="Narrow CA")
    narrow.write_signing_policy("/DC=org/DC=elsewhere/*")
    people["narrow"] = narrow.user("Narrow")
    people["foreign"] = make_grid(site.base / "parts-foreign").user("Alice")
    voms_dir = base / "vomsdir"
    (voms_dir / "demo").mkdir(parents=True)
    lines = f"{people['server'].identity}\n{grid_name(grid)}\n"
    (voms_dir / "demo/voms.example.org.lsc").write_text(lines)
    ban = base / "always-banned"
    ban.write_text(f'"{people["Barred"].identity}"\n')
    installed = {}
    for judge in ("lcmaps", "native"):
        installed[judge] = site.install(
            False,
            f"parts-{judge}",
            certificates_dir=grid.certificates_dir,
            voms_dir=voms_dir,
            decided_by=judge,
            ban_dn=ban,
            grid_mapfile="".join(
                f'"{one.identity}" {site.alice.name}\n' for name, one in people.items() if name != "Nobody"
            ),
        )
    yield World(base, grid, grid.certificates_dir, voms_dir, people, installed)
    for made in installed.values():
        uninstall(made, remove_log=True)


def stale_ca(base: Path) -> Grid:
    grid = make_grid(base, name="Stale CA")
    grid.write_crl(starts_s=-200_000, lifetime_s=100_000)
    return grid


def grid_name(grid: Grid) -> str:
    return Certified(grid.authority.certificate, grid.authority.key).subject


def db(world: World, rules: str, limited: str = "--allow-limited-proxy", **plugins: str) -> str:
    lines = [
        "path = /usr/lib/lcmaps",
        f'verify_proxy = "lcmaps_verify_proxy.mod" " -certdir {world.certificates_dir}" " {limited}"',
        'good = "lcmaps_dummy_good.mod"',
    ]
    lines += [
        f'{name} = "lcmaps_{words.split()[0]}.mod" "{words.partition(" ")[2]}"' for name, words in plugins.items()
    ]
    return "\n".join([*lines, "", "glexec_get_account:", *rules.split(", "), ""])


def user(name: str, **more) -> Callable[[World], bytes]:
    return lambda world: make_proxy(world.people[name], **more).pem


def lend(site, pem: bytes) -> Path:
    """A credential file of the pilot's."""
    return site.proxy(f"parts-{secrets.token_hex(4)}", pem)


def by_judge(site, world, pem: bytes) -> dict[str, int]:
    """Who exits with what."""
    file = lend(site, pem)
    try:
        return {
            judge: site.call("/bin/true", installed=made, env=site.environment(file)).code
            for judge, made in world.installed.items()
        }
    finally:
        file.unlink()


def files_of(one: Certified, directory: Path) -> tuple[str, str]:
    certificate = directory / "certificate.pem"
    certificate.write_bytes(one.certificate.public_bytes(Encoding.PEM))
    key = directory / "key.pem"
    key.unlink(missing_ok=True)
    return str(certificate), str(write_private(key, key_pem(one.key)))


def codes(site, world, pem: bytes) -> set[int]:
    """The exit codes of both, with the words that belong to them."""
    file = lend(site, pem)
    try:
        results = [
            site.call("/bin/true", installed=made, env=site.environment(file)) for made in world.installed.values()
        ]
    finally:
        file.unlink()
    assert all(result.out == b"" for result in results)
    return {result.code for result in results}


def leases(directory: Path) -> dict[str, str]:
    """Lease -> account, by the links."""
    accounts = {path.stat().st_ino: path.name for path in directory.iterdir() if path.name[0] not in "%."}
    return {path.name: accounts[path.stat().st_ino] for path in directory.iterdir() if path.name.startswith("%")}


def flipped(extension: x509.UnrecognizedExtension) -> x509.UnrecognizedExtension:
    """The last bit of the signature is another."""
    return x509.UnrecognizedExtension(VOMS_EXTENSION, extension.value[:-1] + bytes((extension.value[-1] ^ 1,)))
