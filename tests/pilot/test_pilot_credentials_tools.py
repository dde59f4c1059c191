"""Real tools and this package agree about proxies: one table, good and bad; and theirs are accepted here.

`BAD` says what each is wrong in, our word, and whether `openssl verify` sees it too. The tools that print do not
verify: of them only the reading is compared.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from demo.grid import Certified, Grid, KeyKind, key_pem, make_grid, make_key, make_proxy, write_private
from pilot import credentials
from pilot.credentials import CredentialError
from tests.pilot.proxies import openssl_accepts, refusal, verify
from tests.pilot.test_pilot_credentials_voms import HOST, faked, looked_at, trusting

PEM = serialization.Encoding.PEM
TOOLS = ("grid-proxy-info", "grid-proxy-init", "voms-proxy-info", "voms-proxy-fake")
needs_tools = pytest.mark.skipif(
    any(shutil.which(name) is None for name in TOOLS),
    reason=f"needs {', '.join(TOOLS)} (globus-proxy-utils, voms-clients)",
)


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    return make_grid(tmp_path, key="rsa")


def delegated(source: bytes, *, key: KeyKind, limited: bool) -> bytes:
    """As a starter gets it: its own key, signed by the submit side."""
    pending = credentials.make_request(key)
    return pending.complete(credentials.sign_request(source, pending.der, not_after=None, limited=limited))


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=30, env={"PATH": "/usr/bin:/bin", **environment}
    )


@needs_tools
@pytest.mark.parametrize("key", ["ec", "rsa"])
@pytest.mark.parametrize("limited", [True, False])
def test_what_we_make_is_accepted_by_the_tools(grid: Grid, tmp_path: Path, key: KeyKind, limited: bool) -> None:
    alice = grid.user("Alice Adams", key=key)
    pem = delegated(make_proxy(alice, key=key).pem, key=key, limited=limited)
    assert verify(grid, pem).limited is limited
    assert openssl_accepts(grid, pem, tmp_path)
    file = write_private(tmp_path / "proxy", pem)
    assert run("grid-proxy-info", "-exists", "-valid", "0:1", "-file", file).returncode == 0
    kind = run("grid-proxy-info", "-type", "-file", file).stdout
    assert "RFC 3820 compliant" in kind
    assert ("limited" in kind) is limited
    assert run("grid-proxy-info", "-identity", "-file", file).stdout.strip() == alice.identity
    assert (
        run(
            "voms-proxy-info", "-exists", "-file", file, HOME=str(tmp_path), X509_CERT_DIR=str(grid.certificates_dir)
        ).returncode
        == 0
    )


@needs_tools
def test_attributes_are_found_below_a_delegation(grid: Grid, tmp_path: Path) -> None:
    """By the VOMS tools and here, in a proxy that was made of one of theirs."""
    alice, server = grid.user("Alice Adams", key="rsa"), grid.host(HOST, key="rsa")
    pem = delegated(faked(grid, alice, server, tmp_path), key="ec", limited=True)
    file = write_private(tmp_path / "proxy", pem)
    shown = run(
        "voms-proxy-info", "-fqan", "-file", file, HOME=str(tmp_path), X509_CERT_DIR=str(grid.certificates_dir)
    ).stdout.split()
    assert shown
    found = looked_at(grid, pem, trusting(grid, server, tmp_path))
    assert found.attributes is not None
    assert [credentials.primary((fqan,)) for fqan in found.attributes.fqans] == [
        credentials.primary((fqan,)) for fqan in shown
    ]


@needs_tools
@pytest.mark.parametrize("options", [(), ("-limited",)])
def test_what_grid_proxy_init_makes_is_accepted_here(grid: Grid, tmp_path: Path, options: tuple[str, ...]) -> None:
    alice = grid.user("Alice Adams", key="rsa")
    (tmp_path / "cert").write_bytes(alice.certificate.public_bytes(PEM))
    write_private(tmp_path / "key", key_pem(alice.key))
    done = run(
        "grid-proxy-init", "-rfc", "-q", *options, "-cert", tmp_path / "cert", "-key", tmp_path / "key",
        "-out", tmp_path / "proxy", X509_CERT_DIR=str(grid.certificates_dir), HOME=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = verify(grid, (tmp_path / "proxy").read_bytes())
    assert (found.identity, found.limited) == (alice.identity, bool(options))


def revoked(grid: Grid) -> Certified:
    bob = grid.user("Bob Baker")
    grid.write_crl([bob])
    return make_proxy(bob)


def with_anothers_key(grid: Grid) -> Certified:
    proxy = make_proxy(grid.user("Alice Adams"))
    return Certified(proxy.certificate, make_key(), proxy.chain)


# Name -> (how it is made, our code, whether openssl refuses it).
BAD: dict[str, tuple[Callable[[Grid], Certified], str, bool]] = {
    "expired": (lambda grid: make_proxy(grid.user("Alice Adams"), lifetime_s=-60), "expired", True),
    "not yet": (
        lambda grid: make_proxy(grid.user("Alice Adams"), starts_s=3600, lifetime_s=7200), "not-yet-valid", True
    ),
    "path length": (
        lambda grid: make_proxy(make_proxy(make_proxy(grid.user("Alice Adams"), path_length=0))), "not-allowed", True
    ),
    "revoked": (revoked, "revoked", False),  # openssl looks at lists only when told, and then wants one of each proxy
    "wrong key": (with_anothers_key, "no-key", False),  # openssl verify looks at certificates only
    "full below limited": (
        lambda grid: make_proxy(make_proxy(grid.user("Alice Adams"), kind="limited")), "not-allowed", False
    ),
    "independent": (lambda grid: make_proxy(grid.user("Alice Adams"), kind="independent"), "not-allowed", False),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_bad_is_refused_by_both(grid: Grid, tmp_path: Path, name: str) -> None:
    make, code, by_openssl = BAD[name]
    bad = make(grid)
    assert refusal(lambda: verify(grid, bad)).code == code
    assert openssl_accepts(grid, bad, tmp_path) is not by_openssl


def test_an_unknown_ca_is_refused_by_both(grid: Grid, tmp_path: Path) -> None:
    stranger = make_proxy(make_grid(tmp_path / "elsewhere", name="Other CA").user("Alice Adams"))
    assert refusal(lambda: verify(grid, stranger)).code == "untrusted"
    assert not openssl_accepts(grid, stranger, tmp_path)


# --- files ---------------------------------------------------------------------------------------------------------


def test_a_private_file_is_read_and_a_link_to_one_too(tmp_path: Path) -> None:
    file = write_private(tmp_path / "proxy", b"proxy")
    (tmp_path / "link").symlink_to(file)
    assert credentials.read_private(file) == credentials.read_private(tmp_path / "link") == b"proxy"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602, 0o610])
def test_a_file_that_others_may_touch_is_refused_with_the_cure(tmp_path: Path, mode: int) -> None:
    file = write_private(tmp_path / "proxy", b"proxy")
    file.chmod(mode)
    with pytest.raises(CredentialError, match="chmod 600") as refused:
        credentials.read_private(file)
    assert refused.value.code == "unsafe-place"


@pytest.mark.needs_root
def test_a_link_to_somebody_elses_file_is_refused(tmp_path: Path) -> None:
    victim = write_private(tmp_path / "victim", b"theirs")
    os.chown(victim, 65534, 65534)
    (tmp_path / "link").symlink_to(victim)
    with pytest.raises(CredentialError, match="belongs to uid 65534"):
        credentials.read_private(tmp_path / "link")


def test_what_is_no_file_or_too_big_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    for path in (tmp_path / "fifo", tmp_path):
        with pytest.raises((CredentialError, OSError)):
            credentials.read_private(path)
    big = write_private(tmp_path / "big", b"x" * (10 << 20))
    with pytest.raises(CredentialError) as refused:
        credentials.read_private(big)
    assert refused.value.code == "too-big"


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_private(tmp_path / "proxy", b"old half")
    real, calls = os.fstat, [0]

    def fstat(descriptor: int) -> os.stat_result:
        found = real(descriptor)
        if stat.S_ISREG(found.st_mode):
            calls[0] += 1
            if calls[0] == 1:  # somebody writes into it right after the first look
                with file.open("ab") as writing:
                    writing.write(b" new half")
        return found

    monkeypatch.setattr(credentials.os, "fstat", fstat)
    with pytest.raises(CredentialError, match="changed while it was read"):
        credentials.read_private(file)


def test_junk_around_a_good_proxy_is_as_openssl_sees_it(grid: Grid, tmp_path: Path) -> None:
    """Text before and between blocks is allowed by the format; a block that does not end is not."""
    pem = make_proxy(grid.user("Alice Adams")).pem
    assert verify(grid, b"Bag Attributes\n  friendlyName: x\n" + pem + b"\ntrailing words\n").identity
    for junk in (pem[:-30], pem + b"-----BEGIN CERTIFICATE-----\nAAAA\n", pem.replace(b"MII", b"M!I", 1)):
        assert refusal(lambda junk=junk: verify(grid, junk)).code in ("broken", "no-key")


def test_a_clock_that_is_wrong_by_minutes_does_not_refuse_a_new_proxy(grid: Grid) -> None:
    proxy = make_proxy(grid.user("Alice Adams", starts_s=-7200))
    now = time.time()
    with pytest.raises(CredentialError) as early:
        verify(grid, proxy, now=now - 400)
    assert early.value.code == "not-yet-valid"
    assert "clock" in early.value.text
