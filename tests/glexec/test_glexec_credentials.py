"""The real parts and ours, over one table of credentials: who accepts what.

Four judges: glexec with LCMAPS, glexec without it, the pilot's own verification, `openssl verify`; and the
tools that print (grid-proxy-info, voms-proxy-info). Who differs from the rest is in the table, with the reason.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from demo.grid import key_pem, make_key, make_proxy, write_private
from demo.grid_voms import voms_extension
from pilot import credentials
from tests.glexec.judges import (
    DENIED_WORDS,
    PILOT_FQAN,
    World,
    by_judge,
    codes,
    files_of,
    flipped,
    lend,
    user,
)

pytestmark = pytest.mark.needs_root


class Case(NamedTuple):
    """What each judge says. openssl and the pilot: is it believed? glexec: the exit code."""

    make: Callable[[World], bytes]
    code: int  # of both
    openssl: bool
    pilot: str  # empty: accepted; else the refusal's code
    native: int | None = None  # where it differs
    limited: str = ""  # where the site's rule is another than to allow limited proxies


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
