"""The real parts and ours, over one table of credentials: who accepts what.

Four judges: glexec with LCMAPS, glexec without it, the pilot's own verification, `openssl verify`; and the
tools that print (grid-proxy-info, voms-proxy-info). Who differs from the rest is in the table, with the reason.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from demo.grid import Certified, Grid, key_pem, make_grid, make_key, make_proxy, write_private
from demo.grid_voms import VOMS_EXTENSION, voms_extension
from glexec.install import Installed, uninstall
from pilot import credentials

pytestmark = pytest.mark.needs_root

DENIED_WORDS = b"glexec: denied: the site's policy does not map this credential\n"
PILOT_FQAN, PLAIN_FQAN = "/demo/Role=pilot/Capability=NULL", "/demo/Role=NULL/Capability=NULL"
needs_fake = pytest.mark.skipif(
    shutil.which("voms-proxy-fake") is None, reason="voms-proxy-fake (package voms-clients) is missing"
)


class World(NamedTuple):
    """CAs of all kinds in one directory, their people, a VO, and one glexec for each judge."""

    base: Path
    grid: Grid
    certificates_dir: Path
    voms_dir: Path
    people: Mapping[str, Certified]
    installed: Mapping[str, Installed]


@pytest.fixture(scope="module")
def world(site) -> Iterator[World]:
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


@pytest.fixture
def policy(world: World) -> Iterator[Callable[[str], None]]:
    """Gives both the same policy; the old one comes back."""
    old = {made: made.lcmaps_db.read_text() for made in world.installed.values()}

    def give(text: str) -> None:
        for made in world.installed.values():
            made.lcmaps_db.write_text(text)

    yield give
    for made, text in old.items():
        made.lcmaps_db.write_text(text)


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


# What each judge says. openssl and the pilot: is it believed? glexec: the exit code.


class Case(NamedTuple):
    make: Callable[[World], bytes]
    code: int  # of both
    openssl: bool
    pilot: str  # empty: accepted; else the refusal's code
    native: int | None = None  # where it differs
    limited: str = ""  # where the site's rule is another than to allow limited proxies


def user(name: str, **more) -> Callable[[World], bytes]:
    return lambda world: make_proxy(world.people[name], **more).pem


def stacked(**more) -> Callable[[World], bytes]:
    """A proxy made by a proxy."""
    lower = {key[6:]: value for key, value in more.items() if key.startswith("upper_")}
    upper = {key: value for key, value in more.items() if not key.startswith("upper_")}
    return lambda world: make_proxy(make_proxy(world.people["Alice"], **lower), **upper).pem


def without_key(world: World) -> bytes:
    return re.sub(
        rb"-----BEGIN [A-Z ]*PRIVATE KEY.*?-----END [A-Z ]*PRIVATE KEY-----\n", b"", user("Alice")(world), flags=re.S
    )


def with_another_key(world: World) -> bytes:
    return without_key(world) + key_pem(make_key())


def with_junk(world: World) -> bytes:
    return b"some text before\n" + user("Alice")(world).replace(
        b"-----END CERTIFICATE-----\n", b"-----END CERTIFICATE-----\njunk\n"
    )


DAMAGED = {
    "no base64": "-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n",
    "no DER": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    "no end": "-----BEGIN CERTIFICATE-----\nAAAA\n",
    "another label": "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n",
}


def behind_a_damaged_part(kind: str) -> Callable[[World], bytes]:
    """Nobody's chain is good as far as one reader comes; another one goes on, and finds Alice."""

    def make(world: World) -> bytes:
        hers = world.people["Alice"].certificate.public_bytes(Encoding.PEM)
        return make_proxy(world.people["Nobody"]).pem + DAMAGED[kind].encode() + hers

    return make


def with_a_twin(world: World) -> bytes:
    """Another name for the same key, by the same CA: signed as it should be, and still not the proxy's issuer."""
    mine, authority = world.people["Nobody"], world.grid.authority
    subject = x509.Name([*world.grid.organisation.rdns, *world.people["Alice"].certificate.subject.rdns[-1:]])
    builder = x509.CertificateBuilder(authority.certificate.subject, subject, mine.key.public_key(), 9)
    builder = builder.not_valid_before(mine.certificate.not_valid_before_utc)
    twin = builder.not_valid_after(mine.certificate.not_valid_after_utc).sign(authority.key, hashes.SHA256())
    proxy = make_proxy(mine)
    return (
        proxy.certificate.public_bytes(Encoding.PEM)
        + key_pem(proxy.key)
        + twin.public_bytes(Encoding.PEM)
        + authority.certificate.public_bytes(Encoding.PEM)
    )


def with_a_forged_attribute_certificate(world: World) -> bytes:
    extension, critical = voms_extension(world.people["Rsa"], world.people["server"], [PILOT_FQAN], brings_server=True)
    return make_proxy(world.people["Rsa"], extensions=[(flipped(extension), critical)]).pem


def cut(world: World) -> bytes:
    return user("Alice")(world)[:300]


def without_owner(world: World) -> bytes:
    """The proxy and its key without the user's certificate."""
    return b"".join(part + b"-----\n" for part in user("Alice")(world).split(b"-----\n")[:4])


def named_like(authority: x509.Certificate, issuer: x509.Certificate) -> x509.Certificate:
    """By name between the two; signed by nobody who counts."""
    key = make_key()
    builder = x509.CertificateBuilder(issuer.subject, authority.subject, key.public_key(), 7)
    builder = builder.not_valid_before(authority.not_valid_before_utc).not_valid_after(authority.not_valid_after_utc)
    return builder.sign(key, hashes.SHA256())


def with_another_owner(*order: str) -> Callable[[World], bytes]:
    """Nobody's own proxy and key, and Alice's certificate slipped in, which is no secret."""

    def make(world: World) -> bytes:
        mine, hers = world.people["Nobody"], world.people["Alice"]
        proxy = make_proxy(mine)
        parts = {
            "proxy": proxy.certificate,
            "my CA": named_like(world.grid.authority.certificate, hers.certificate),
            "mine": mine.certificate,
            "hers": hers.certificate,
            "her proxy": make_proxy(hers).certificate,
        }
        pem = [parts[name].public_bytes(Encoding.PEM) for name in order]
        return pem[0] + key_pem(proxy.key) + b"".join(pem[1:])

    return make


CASES = {
    "a proxy": Case(user("Alice"), 0, True, ""),
    "an RSA proxy": Case(user("Rsa", key="rsa"), 0, True, ""),
    "a limited proxy": Case(user("Alice", kind="limited"), 0, True, ""),
    "a proxy's proxy": Case(stacked(), 0, True, ""),
    "a limited proxy's limited proxy": Case(stacked(kind="limited", upper_kind="limited"), 0, True, ""),
    "within its path length": Case(stacked(upper_path_length=1), 0, True, ""),
    "expired": Case(user("Alice", lifetime_s=-60), 201, False, "expired"),
    "an upper proxy expired": Case(stacked(upper_lifetime_s=-60), 201, False, "expired"),
    "not valid yet": Case(user("Alice", starts_s=3000), 201, False, "not-yet-valid"),
    "beyond the path length": Case(stacked(upper_path_length=0), 203, False, "not-allowed"),
    "a limited proxy turned full": Case(stacked(upper_kind="limited"), 203, True, "not-allowed"),
    # It does not carry its owner's rights (RFC 3820, 3.8.2). LCMAPS does not care; the pilot never shows one.
    "an independent proxy": Case(user("Alice", kind="independent"), 0, True, "not-allowed", native=203),
    "unknown CA": Case(user("foreign"), 203, False, "untrusted"),
    "revoked": Case(user("Revoked"), 203, False, "revoked"),
    # The site has to fetch the list: its fault, where we decide. LCMAPS tells no difference.
    "an outdated revocation list": Case(user("stale"), 203, False, "crl", native=202),
    # A grid's directory may have neither for some CA. openssl is asked for lists, and wants them all.
    "no revocation list and no signing policy": Case(user("listless"), 0, False, ""),
    "a damaged revocation list": Case(user("damaged"), 0, False, "crl", native=202),
    # LCMAPS looks at no signing policy, openssl knows none.
    "a name that its CA may not give": Case(user("narrow"), 0, True, "untrusted", native=203),
    # The site's decisions: everybody else believes the chain.
    "banned": Case(user("Barred"), 203, True, ""),
    "limited, where the site forbids it": Case(user("Alice", kind="limited"), 203, True, "", limited="disallow"),
    "full, where the site wants limited ones": Case(user("Alice"), 203, True, "", limited="require"),
    # The pilot does not believe the attributes, and the proxy is still its owner's; openssl reads none.
    "a forged attribute certificate": Case(with_a_forged_attribute_certificate, 203, True, "attributes"),
    "another's key": Case(with_another_key, 201, True, "no-key"),
    "no key": Case(without_key, 201, True, "no-key"),
    "no certificate of its owner": Case(without_owner, 203, False, "broken"),
    "another's certificate before the own": Case(with_another_owner("proxy", "hers", "mine"), 201, True, "broken"),
    "another's certificate behind the own": Case(with_another_owner("proxy", "mine", "hers"), 201, True, "broken"),
    "another's certificate alone": Case(with_another_owner("proxy", "hers"), 201, False, "broken"),
    "another certificate of the same key": Case(with_a_twin, 201, False, "broken"),
    **{
        f"another's certificate behind {kind}": Case(behind_a_damaged_part(kind), 201, True, "broken")
        for kind in DAMAGED
    },
    "another's proxy between": Case(with_another_owner("proxy", "her proxy", "hers", "mine"), 201, True, "broken"),
    "another's certificate behind a CA of our own": Case(
        with_another_owner("proxy", "mine", "my CA", "hers"), 201, True, ""
    ),
    # Text between the parts is allowed by RFC 7468; the pilot is as tolerant.
    "junk around the parts": Case(with_junk, 0, True, ""),
    "cut short": Case(cut, 201, False, "broken"),
}


@pytest.mark.parametrize("name", CASES)
def test_one_table_of_credentials(site, world, policy, name):
    case = CASES[name]
    pem = case.make(world)
    if case.limited:
        text = world.installed["native"].lcmaps_db.read_text()
        assert "allow-limited-proxy" in text
        policy(text.replace("allow-limited-proxy", f"{case.limited}-limited-proxy"))
    file = lend(site, pem)
    try:
        found = {
            judge: site.call("/bin/true", installed=made, env=site.environment(file))
            for judge, made in world.installed.items()
        }
        assert found["lcmaps"].code == case.code, found
        assert found["native"].code == (case.code if case.native is None else case.native), found
        for judge, result in found.items():
            assert (result.err == DENIED_WORDS) == (result.code == 203)
            line = site.last("decision", installed=world.installed[judge])
            assert (
                line["result"] == {0: "mapped", 201: "client error", 202: "internal error", 203: "denied"}[result.code]
            )
            if result.code == 0:
                assert (line["by"], line["account"]) == (judge, site.alice.name)
        assert openssl_accepts(world, file) == case.openssl
        assert pilots_word(world, pem) == case.pilot
    finally:
        file.unlink()


def lend(site, pem: bytes) -> Path:
    """A credential file of the pilot's."""
    return site.proxy(f"parts-{secrets.token_hex(4)}", pem)


def openssl_accepts(world: World, file: Path) -> bool:
    command = ["openssl", "verify", "-CApath", str(world.certificates_dir), "-crl_check_all", "-allow_proxy_certs"]
    done = subprocess.run([*command, "-untrusted", str(file), str(file)], capture_output=True)
    return done.returncode == 0


def pilots_word(world: World, pem: bytes) -> str:
    try:
        found = credentials.verify(pem, world.certificates_dir, now=time.time(), voms_dir=world.voms_dir)
    except credentials.CredentialError as error:
        return error.code
    return "attributes" if found.attributes_fault else ""


@pytest.mark.parametrize("name", ["a proxy", "an RSA proxy", "a limited proxy", "a proxy's proxy"])
def test_the_tools_that_print_take_ours(site, world, name):
    env = {"PATH": "/usr/bin", "HOME": str(site.base), "X509_CERT_DIR": str(world.certificates_dir)}
    file = write_private(site.base / "printed.pem", CASES[name].make(world))
    try:
        for tool in ("grid-proxy-info", "voms-proxy-info"):
            if shutil.which(tool) is None:
                pytest.skip(f"{tool} is missing (packages globus-proxy-utils, voms-clients)")
            done = subprocess.run([tool, "-file", str(file), "-identity"], capture_output=True, text=True, env=env)
            assert done.returncode == 0, done
            assert "/CN=" in done.stdout
        kind = subprocess.run(["grid-proxy-info", "-file", str(file), "-type"], capture_output=True, text=True).stdout
        assert ("limited" in kind) == ("limited" in name)
    finally:
        file.unlink()


def globus_makes(world: World, directory: Path, *options: str) -> bytes:
    """A proxy by grid-proxy-init."""
    if shutil.which("grid-proxy-init") is None:
        pytest.skip("grid-proxy-init (package globus-proxy-utils) is missing")
    certificate, key = files_of(world.people["Classic"], directory)
    out = directory / "out"
    command = ["grid-proxy-init", *options, "-cert", certificate, "-key", key, "-out", str(out), "-q"]
    env = {"X509_CERT_DIR": str(world.certificates_dir), "PATH": "/usr/bin"}
    done = subprocess.run(command, capture_output=True, env=env)
    assert done.returncode == 0, done
    return out.read_bytes()


@pytest.mark.parametrize("options", [["-rfc"], ["-rfc", "-limited"]])
def test_all_take_what_grid_proxy_init_makes(site, world, tmp_path, options):
    pem = globus_makes(world, tmp_path, *options)
    assert codes(site, world, pem) == {0}
    assert pilots_word(world, pem) == ""
    file = lend(site, pem)
    assert openssl_accepts(world, file)
    file.unlink()


@pytest.mark.parametrize("kind", ["-old", "-draft"])
def test_proxies_from_before_the_rfc_are_for_lcmaps_only(site, world, tmp_path, kind):
    pem = globus_makes(world, tmp_path, kind)
    assert by_judge(site, world, pem) == {"lcmaps": 0, "native": 203}
    assert site.last("decision", installed=world.installed["lcmaps"])["dn"] == world.people["Classic"].identity
    assert pilots_word(world, pem) == "old-style"


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


@pytest.mark.parametrize(
    ("digest", "bits", "words"), [("-sha1", "2048", "no longer safe"), ("-sha256", "512", "too short")]
)
def test_what_can_be_forged_is_refused_above_the_proxies(site, world, tmp_path, digest, bits, words):
    """Made by openssl, because our own library makes none any more."""
    ca = tmp_path / "ca.pem"
    ca.write_bytes(world.grid.authority.certificate.public_bytes(Encoding.PEM) + key_pem(world.grid.authority.key))
    key = tmp_path / "key.pem"
    subprocess.run(["openssl", "genrsa", "-out", key, bits], check=True, capture_output=True)
    subject = f"/DC=org/DC=sailplane-demo/CN=Old {digest} {bits}"
    request = ["openssl", "req", "-new", "-key", key, "-subj", subject, "-out", tmp_path / "req"]
    subprocess.run(request, check=True, capture_output=True)
    sign = ["openssl", "x509", "-req", digest, "-in", tmp_path / "req", "-CA", ca, "-CAkey", ca, "-set_serial", "77"]
    done = subprocess.run([*sign, "-days", "3"], check=True, capture_output=True)
    made = world.installed["native"]
    made.grid_mapfile.write_text(made.grid_mapfile.read_text() + f'"{subject}" {site.alice.name}\n')
    pem = done.stdout + key.read_bytes()
    assert by_judge(site, world, pem)["native"] == 203
    assert words in site.last("decision", installed=made)["details"]
    assert pilots_word(world, pem) == "broken"


def files_of(one: Certified, directory: Path) -> tuple[str, str]:
    certificate = directory / "certificate.pem"
    certificate.write_bytes(one.certificate.public_bytes(Encoding.PEM))
    key = directory / "key.pem"
    key.unlink(missing_ok=True)
    return str(certificate), str(write_private(key, key_pem(one.key)))


# Policies: the same text for both


@pytest.mark.parametrize("limited", ["disallow", "require"])
def test_a_site_may_forbid_limited_proxies_or_full_ones(site, world, policy, limited):
    local = f"localaccount -gridmapfile {world.installed['lcmaps'].grid_mapfile}"
    policy(db(world, "verify_proxy -> local, local -> good", f"--{limited}-limited-proxy", local=local))
    for kind in ("inherit", "limited"):
        allowed = (kind == "limited") == (limited == "require")
        assert codes(site, world, user("Alice", kind=kind)(world)) == {0 if allowed else 203}


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


@pytest.mark.parametrize("pattern", ["exact", "wildcard", "not a wildcard"])
def test_a_ban_by_dn(site, world, policy, pattern):
    ban = world.base / "ban"
    dn = world.people["Banned"].identity
    ban.write_text(f'# comment\n"{dn if pattern == "exact" else dn[:-3] + "*"}"\n')
    options = " -no_wildcard" if pattern == "not a wildcard" else ""
    local = f"localaccount -gridmapfile {world.installed['lcmaps'].grid_mapfile}"
    rules = "verify_proxy -> ban, ban -> local, local -> good"
    policy(db(world, rules, ban=f"ban_dn -banmapfile {ban}{options}", local=local))
    assert codes(site, world, user("Banned")(world)) == {0 if options else 203}
    assert codes(site, world, user("Bob")(world)) == {0}
    assert codes(site, world, user("Nobody")(world)) == {203}
    ban.unlink()
    assert 0 not in codes(site, world, user("Bob")(world))  # a ban file that is gone bans all


def test_failure_branches_and_what_cannot_be(site, world, policy):
    local = f"localaccount -gridmapfile {world.installed['lcmaps'].grid_mapfile}"
    nobody = "dummy_good --dummy-username nobody --dummy-group nogroup"
    ban = world.base / "ban"
    ban.write_text(f'"{world.people["Banned"].identity}"\n')
    policy(
        db(
            world,
            "verify_proxy -> ban, ban -> local | other",
            ban=f"ban_dn -banmapfile {ban}",
            local=local,
            other=nobody,
        )
    )
    assert codes(site, world, user("Alice")(world)) == {0}
    assert codes(site, world, user("Banned")(world)) == {0}
    assert site.last("decision", installed=world.installed["native"])["account"] == "nobody"
    ban.unlink()
    policy(db(world, "~verify_proxy -> local, local -> good", local=local))
    assert codes(site, world, user("Alice")(world)) == {203}  # the chain is good, and nobody maps it
    policy(db(world, "verify_proxy -> bad", bad="dummy_bad"))
    assert codes(site, world, user("Alice")(world)) == {203}
    for broken in ("verify_proxy -> local, verify_proxy -> good", "verify_proxy -> nowhere", "verify_proxy ->"):
        policy(db(world, broken, local=local))
        assert codes(site, world, user("Alice")(world)) == {202}


def test_the_native_side_offers_nothing_that_it_has_not(site, world, policy):
    made = world.installed["native"]
    local = f"localaccount -gridmapfile {made.grid_mapfile}"
    file = lend(site, user("Alice")(world))
    for text in (
        db(world, "verify_proxy -> scas, scas -> local, local -> good", scas="scas_client -endpoint x", local=local),
        db(world, "verify_proxy -> local, local -> good", "--max-voms-ttl 1", local=local),
        db(world, "local -> good", local=local),  # maps before anything is verified
    ):
        policy(text)
        assert site.call("/bin/true", installed=made, env=site.environment(file)).code == 202
    file.unlink()


@pytest.mark.parametrize("what", ["0", "r0", "signing_policy"])
def test_a_file_of_a_ca_that_others_can_write_is_202(site, world, what):
    file = world.certificates_dir / f"{world.grid.hash}.{what}"
    file.chmod(0o666)
    try:
        assert codes(site, world, user("Alice")(world)) == {202}
        line = site.last("decision", installed=world.installed["native"])
        assert line["reason"] == f"{file} can be written by others"
    finally:
        file.chmod(0o644)


def test_plugins_and_maps_come_from_root_alone(site, world, policy, tmp_path):
    """What LCMAPS loads runs as root; a relative path is the caller's to lead."""
    theirs = world.base / "theirs"
    theirs.mkdir(exist_ok=True)
    os.chown(theirs, site.alice.uid, site.alice.gid)
    local = f"localaccount -gridmapfile {world.installed['lcmaps'].grid_mapfile}"
    rules = "verify_proxy -> local, local -> good"
    for text in (
        db(world, rules, local=local).replace("path = /usr/lib/lcmaps", f"path = {theirs}"),
        db(world, rules, local=local).replace("lcmaps_dummy_good.mod", f"{theirs}/../theirs/lcmaps_dummy_good.mod"),
        db(world, rules, local="localaccount -gridmapfile grid-mapfile"),
        db(world, rules, local=local).replace(str(world.certificates_dir), "certificates"),
    ):
        (theirs / "lcmaps_dummy_good.mod").touch()
        policy(text)
        assert codes(site, world, user("Alice")(world)) == {202}, text


# The file that the WLCG gLExec deployment page prints: its label is missing, and its path and group are EL's

PRINTED = """# LCMAPS config file for glexec generated by hand
path = /usr/lib64/lcmaps

verify_proxy = "lcmaps_verify_proxy.mod"
               " -certdir {certificates}"
               " --allow-limited-proxy"

ban_dn = "lcmaps_ban_dn.mod"
         " -banmapfile {base}/ban_users.db"

ban_fqan = "lcmaps_ban_fqan.mod"
           " -banmapfile {base}/ban_fqan.db"

good = "lcmaps_dummy_good.mod"
       " --dummy-username nobody"
       " --dummy-group nobody"
       " --dummy-sec-group nobody"

# policies
verify_proxy -> ban_dn
ban_dn -> ban_fqan
ban_fqan -> good
"""


def test_the_policy_that_is_printed_in_the_fields_guide_works(site, world, policy):
    (world.base / "ban_users.db").write_text(f'"{world.people["Banned"].identity}"\n')
    (world.base / "ban_fqan.db").write_text("")
    policy(PRINTED.format(certificates=world.certificates_dir, base=world.base))
    conf = {made: made.configuration.read_text() for made in world.installed.values()}
    for made, text in conf.items():
        made.configuration.write_text(text.replace("log_only = no", "log_only = yes"))
    assert codes(site, world, user("Banned")(world)) == {203}
    assert codes(site, world, user("Bob")(world)) == {0}
    for made in conf:
        line = site.last("decision", installed=made)
        assert (line["account"], line["log_only"]) == ("nobody", True)
        assert "lcmaps db: rules without a label taken as policy glexec_get_account" in line["warnings"]
    result = site.call("/usr/bin/id", "-u", installed=world.installed["native"], env=site.environment("alice"))
    assert result.code in (0, 203)  # Alice of the other CA: unknown here
    for made, text in conf.items():
        made.configuration.write_text(text)


# Pool accounts


@pytest.fixture
def pool(site, world, policy) -> Iterator[Path]:
    """A gridmapdir with both test accounts in it, and a map of everybody to the pool."""
    directory = world.base / "gridmapdir"
    directory.mkdir()
    for account in (site.alice.name, site.bob.name):
        (directory / account).touch()
    prefix = re.match(r"(.*?)(alice|bob)$", site.alice.name)[1]
    pool_map = world.base / "pool-mapfile"
    pool_map.write_text(f'"/DC=org/*" .{prefix}\n')
    options = f"-gridmapfile {pool_map} -gridmapdir {directory} -strict_poolprefix_match no"
    policy(db(world, "verify_proxy -> pool, pool -> good", pool=f"poolaccount {options}"))
    yield directory
    shutil.rmtree(directory)
    pool_map.unlink()


def leases(directory: Path) -> dict[str, str]:
    """Lease -> account, by the links."""
    accounts = {path.stat().st_ino: path.name for path in directory.iterdir() if path.name[0] not in "%."}
    return {path.name: accounts[path.stat().st_ino] for path in directory.iterdir() if path.name.startswith("%")}


@pytest.mark.parametrize("first", ["lcmaps", "native"])
def test_a_lease_of_one_is_the_others(site, world, pool, first):
    order = sorted(world.installed, key=lambda judge: judge != first)
    dn = world.people["Alice"].identity
    name = "".join(char.lower() if char.isalnum() else f"%{ord(char):02x}" for char in dn)
    file = lend(site, user("Alice")(world))
    accounts = []
    for judge in order:
        made = world.installed[judge]
        assert site.call("/bin/true", installed=made, env=site.environment(file)).code == 0
        line = site.last("decision", installed=made)
        assert line["lease"] == name
        accounts.append(line["account"])
    file.unlink()
    assert leases(pool) == {name: accounts[0]}
    assert accounts[0] == accounts[1]
    assert (pool / accounts[0]).stat().st_nlink == 2


def test_a_policy_that_ends_in_posix_enf_works_for_both(site, world, pool, policy):
    """`user_identity_switch_by = lcmaps`: the library's child changes its identity, and the root part does."""
    if not Path("/usr/lib/lcmaps/lcmaps_posix_enf.mod").exists():
        pytest.skip("lcmaps-plugins-basic-posixenf is missing")
    text = world.installed["native"].lcmaps_db.read_text()
    enforce = 'lcmaps_posix_enf.mod" "-maxuid 1 -maxpgid 1 -maxsgid 32'
    policy(text.replace("lcmaps_dummy_good.mod", enforce))
    for judge, made in world.installed.items():
        assert by_judge(site, world, user("Alice")(world))[judge] == 0
        assert site.last("decision", installed=made)["by"] == judge
    assert len(leases(pool)) == 1


def test_a_pool_has_an_end(site, world, pool):
    assert codes(site, world, user("Alice")(world)) == {0}
    assert codes(site, world, user("Bob")(world)) == {0}
    assert codes(site, world, user("Rsa")(world)) == {203}
    assert len(leases(pool)) == 2


@pytest.mark.parametrize("first", ["lcmaps", "native"])
@pytest.mark.parametrize("second", ["lcmaps", "native"])
def test_two_dns_that_differ_in_case_never_share_an_account(site, world, pool, first, second):
    one, other = world.grid.user("Al Case"), world.grid.user("AL CASE")
    files = [lend(site, make_proxy(who).pem) for who in (one, other)]
    made = [world.installed[judge] for judge in (first, second)]
    assert site.call("/bin/true", installed=made[0], env=site.environment(files[0])).code == 0
    refused = site.call("/bin/true", installed=made[1], env=site.environment(files[1]))
    assert (refused.code, refused.err) == (203, DENIED_WORDS)
    assert "different in case only" in site.last("decision", installed=made[1])["details"]
    assert site.call("/bin/true", installed=made[1], env=site.environment(files[0])).code == 0
    for file in files:
        file.unlink()


def test_an_orphaned_lease_is_made_anew(site, world, pool):
    assert codes(site, world, user("Alice")(world)) == {0}
    [(lease, account)] = leases(pool).items()
    (pool / account).unlink()
    (pool / account).touch()
    assert (pool / lease).stat().st_nlink == 1
    file = lend(site, user("Alice")(world))
    assert site.call("/bin/true", installed=world.installed["native"], env=site.environment(file)).code == 0
    file.unlink()
    assert (pool / lease).stat().st_nlink == 2


def test_a_gridmapdir_that_others_can_write_is_202(site, world, pool):
    pool.chmod(0o777)
    assert codes(site, world, user("Alice")(world)) == {202}
    assert leases(pool) == {}
    pool.chmod(0o755)


# VOMS attributes


def faked(world: World, who: str, fqans: list[str], directory: Path, server: str = "server") -> bytes:
    """A proxy by voms-proxy-fake, with an attribute certificate signed by `server`."""
    directory.mkdir(exist_ok=True)
    host = directory / "host"
    host.mkdir(exist_ok=True)
    certificate, key = files_of(world.people[who], directory)
    host_certificate, host_key = files_of(world.people[server], host)
    out = directory / "fake.pem"
    command = ["voms-proxy-fake", "-rfc", "-cert", certificate, "-key", key, "-certdir", str(world.certificates_dir)]
    command += ["-voms", "demo", "-uri", "voms.example.org:15000", "-hostcert", host_certificate, "-hostkey", host_key]
    command += [word for fqan in fqans for word in ("-fqan", fqan)]
    done = subprocess.run([*command, "-newformat", "-hours", "12", "-out", str(out)], capture_output=True)
    assert done.returncode == 0, done
    return out.read_bytes()


def attributes_of(pem: bytes) -> x509.UnrecognizedExtension:
    value = x509.load_pem_x509_certificate(pem).extensions.get_extension_for_oid(VOMS_EXTENSION).value
    assert isinstance(value, x509.UnrecognizedExtension)
    return value


def flipped(extension: x509.UnrecognizedExtension) -> x509.UnrecognizedExtension:
    """The last bit of the signature is another."""
    return x509.UnrecognizedExtension(VOMS_EXTENSION, extension.value[:-1] + bytes((extension.value[-1] ^ 1,)))


@pytest.fixture
def vo(site, world, policy) -> Iterator[str]:
    """FQANs to groups and accounts; gives the rules' policy."""
    groups, accounts, ban = (world.base / name for name in ("groups", "accounts", "ban-fqan"))
    groups.write_text(f'"/demo/Role=pilot*" {site.bob.name}\n"/demo/*" {site.alice.name}\n"/demo" {site.alice.name}\n')
    accounts.write_text(f'"/demo/Role=pilot*" {site.bob.name}\n"/demo/*" {site.alice.name}\n')
    ban.write_text('"/demo/Role=banned/Capability=NULL"\n"/demo/Role=short"\n')
    policy(
        db(
            world,
            "verify_proxy -> ban, ban -> group, group -> account, account -> good",
            ban=f"ban_fqan -banmapfile {ban}",
            group=f"voms_localgroup -groupmapfile {groups} -mapmin 1",
            account=f"voms_localaccount -gridmapfile {accounts}",
        )
    )
    yield "vo"
    for file in (groups, accounts, ban):
        file.unlink()


@needs_fake
def test_an_lsc_file_that_others_can_write_is_202(site, world, vo, tmp_path):
    pem = faked(world, "Rsa", [PILOT_FQAN], tmp_path)
    file = world.voms_dir / "demo/voms.example.org.lsc"
    file.chmod(0o666)
    try:
        assert codes(site, world, pem) == {202}
    finally:
        file.chmod(0o644)


@needs_fake
def test_fqans_are_mapped_by_both_alike(site, world, vo, tmp_path):
    pem = faked(world, "Rsa", [PILOT_FQAN, PLAIN_FQAN], tmp_path)
    assert codes(site, world, pem) == {0}
    lines = [site.last("decision", installed=made) for made in world.installed.values()]
    for line in lines:
        assert line["fqans"] == [PILOT_FQAN, PLAIN_FQAN]
        assert (line["account"], line["uid"], line["gid"]) == (site.bob.name, site.bob.uid, site.bob.gid)
    assert lines[0]["groups"] == lines[1]["groups"]
    found = credentials.verify(pem, world.certificates_dir, now=time.time(), voms_dir=world.voms_dir)
    assert found.attributes is not None
    assert codes(site, world, faked(world, "Rsa", [PLAIN_FQAN], tmp_path)) == {0}
    assert site.last("decision", installed=world.installed["native"])["account"] == site.alice.name
    assert codes(site, world, user("Rsa")(world)) == {203}  # no FQAN, no account


@needs_fake
def test_a_ban_by_fqan(site, world, vo, tmp_path):
    assert codes(site, world, faked(world, "Rsa", ["/demo/Role=banned/Capability=NULL"], tmp_path)) == {203}
    # Written without its empty part LCMAPS silently does not apply a ban; the native side does.
    pem = faked(world, "Rsa", ["/demo/Role=short/Capability=NULL"], tmp_path)
    assert by_judge(site, world, pem) == {"lcmaps": 0, "native": 203}


@needs_fake
@pytest.mark.parametrize("by", ["fqan", "dn"])
@pytest.mark.parametrize("forgery", ["a user's own", "another holder's", "another VO's names", "changed"])
def test_a_forged_attribute_certificate_is_refused_by_all(site, world, request, tmp_path, by, forgery):
    if by == "fqan":
        request.getfixturevalue("vo")
    if forgery == "a user's own":
        pem = faked(world, "Rsa", [PILOT_FQAN], tmp_path, server="Rsa")
    elif forgery == "another VO's names":
        pem = faked(world, "Rsa", ["/other/Role=pilot/Capability=NULL"], tmp_path)
    else:
        good = attributes_of(faked(world, "Rsa", [PILOT_FQAN], tmp_path))
        who = "Alice" if forgery == "another holder's" else "Rsa"
        extension = good if forgery == "another holder's" else flipped(good)
        pem = make_proxy(world.people[who], extensions=[(extension, False)]).pem
    assert codes(site, world, pem) == {203}
    for made in world.installed.values():
        assert "attribute certificate" in site.last("decision", installed=made)["details"]
    found = credentials.verify(pem, world.certificates_dir, now=time.time(), voms_dir=world.voms_dir)
    assert found.attributes is None
    assert found.attributes_fault


@needs_fake
def test_a_vo_that_the_site_does_not_know_gives_no_fqans(site, world, tmp_path):
    """As with LCMAPS: the DN alone is decided on."""
    pem = faked(world, "Rsa", [PILOT_FQAN], tmp_path)
    (world.voms_dir / "demo").rename(world.voms_dir / "other")
    try:
        assert codes(site, world, pem) == {0}
        assert "fqans" not in site.last("decision", installed=world.installed["native"])
    finally:
        (world.voms_dir / "other").rename(world.voms_dir / "demo")


def stated(world: World, **more) -> bytes:
    """A proxy with an attribute certificate that we made ourselves."""
    extension = voms_extension(world.people["Rsa"], world.people["server"], [PILOT_FQAN], brings_server=True, **more)
    return make_proxy(world.people["Rsa"], extensions=[extension]).pem


def test_attributes_that_we_make_count_for_all(site, world, vo):
    assert codes(site, world, stated(world)) == {0}
    assert site.last("decision", installed=world.installed["native"])["account"] == site.bob.name


@pytest.mark.parametrize("by", ["fqan", "dn"])
def test_a_server_of_the_right_names_by_an_unknown_ca_states_nothing(site, world, request, tmp_path, by):
    """Names in an .lsc file are no secret: anybody makes a CA and a server that bear them."""
    if by == "fqan":
        request.getfixturevalue("vo")
    server = make_grid(tmp_path).host("voms.example.org", key="rsa")
    assert server.identity == world.people["server"].identity
    extension = voms_extension(world.people["Rsa"], server, [PILOT_FQAN], brings_server=True)
    pem = make_proxy(world.people["Rsa"], extensions=[extension]).pem
    assert codes(site, world, pem) == {203}
    found = credentials.verify(pem, world.certificates_dir, now=time.time(), voms_dir=world.voms_dir)
    assert (found.attributes, bool(found.attributes_fault)) == (None, True)


def test_a_server_states_nothing_of_another_vo(site, world, vo):
    """It is trusted for demo only, and puts both into one attribute certificate."""
    groups = world.base / "groups"
    groups.write_text(f'"/victim/Role=admin*" {site.bob.name}\n{groups.read_text()}')
    accounts = world.base / "accounts"
    accounts.write_text(f'"/victim/Role=admin*" {site.bob.name}\n')
    pem = stated(world, others={"victim": ["/victim/Role=admin/Capability=NULL"]})
    assert codes(site, world, pem) == {203}
    found = credentials.verify(pem, world.certificates_dir, now=time.time(), voms_dir=world.voms_dir)
    assert found.attributes is None


def test_attributes_that_have_expired_give_no_fqans(site, world, request):
    """Not fatal by themselves (a decision): the policy decides on the DN, or refuses for want of an FQAN."""
    pem = stated(world, starts_s=-7200, lifetime_s=-3600)
    assert codes(site, world, pem) == {0}
    request.getfixturevalue("vo")
    assert codes(site, world, pem) == {203}


def test_vo_pool_accounts_have_leases_with_their_groups(site, world, policy, vo):
    directory = world.base / "vo-gridmapdir"
    directory.mkdir()
    (directory / site.bob.name).touch()
    pools = world.base / "vo-pools"
    pools.write_text(f'"/demo/*" .{site.bob.name[:-3]}\n')
    try:
        text = world.installed["native"].lcmaps_db.read_text()
        old = next(line for line in text.splitlines() if line.startswith("account = "))
        options = f"-gridmapfile {pools} -gridmapdir {directory} -strict_poolprefix_match no"
        policy(text.replace(old, f'account = "lcmaps_voms_poolaccount.mod" "{options}"'))
        for judge, made in world.installed.items():
            assert by_judge(site, world, stated(world))[judge] == 0
            line = site.last("decision", installed=made)
            assert line["account"] == site.bob.name
            assert line["lease"].endswith(f":{site.bob.name}")
        assert len(leases(directory)) == 1
    finally:
        shutil.rmtree(directory)
        pools.unlink()
