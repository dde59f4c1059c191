"""VOMS attribute certificates: the real tool's are believed where the site knows the server; forged ones never."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from demo.grid import Certified, Grid, KeyKind, key_pem, make_grid, make_proxy, write_private
from demo.grid_voms import voms_extension
from pilot import credentials
from pilot.credentials import Credential

PEM = serialization.Encoding.PEM
HOST = "voms.example.org"
FQANS = ("/demo/Role=pilot/Capability=NULL", "/demo/Role=NULL/Capability=NULL")


def trusting(grid: Grid, server: Certified, directory: Path, *, lines: tuple[str, ...] = ()) -> Path:
    """A vomsdir that knows the server by the names of its certificate and of its CA."""
    lsc = directory / "vomsdir" / "demo" / f"{HOST}.lsc"
    lsc.parent.mkdir(parents=True, exist_ok=True)
    lsc.write_text("\n".join(lines or (server.subject, grid.authority.subject)) + "\n")
    return directory / "vomsdir"


def looked_at(grid: Grid, proxy: Certified | bytes, voms_dir: Path, *, now: float | None = None) -> Credential:
    pem = proxy if isinstance(proxy, bytes) else proxy.pem
    moment = time.time() if now is None else now
    return credentials.verify(pem, grid.certificates_dir, now=moment, voms_dir=voms_dir)


def with_certificate(server: Certified, voms_dir: Path) -> Path:
    """The older way: the server's certificate itself in the directory."""
    (voms_dir / "demo").mkdir(parents=True)
    (voms_dir / "demo" / "server.pem").write_bytes(server.certificate.public_bytes(PEM))
    return voms_dir


@pytest.mark.skipif(shutil.which("voms-proxy-fake") is None, reason="voms-proxy-fake (package voms-clients) is missing")
@pytest.mark.parametrize("key", ["rsa", "ec"])
def test_what_the_real_tool_makes_is_believed(tmp_path: Path, key: KeyKind) -> None:
    grid = make_grid(tmp_path)
    alice, server = grid.user("Alice Adams", key="rsa"), grid.host(HOST, key=key)
    proxy = faked(grid, alice, server, tmp_path)
    found = looked_at(grid, proxy, trusting(grid, server, tmp_path))
    assert found.attributes_fault == ""
    assert found.attributes is not None
    assert found.attributes.vo == "demo"
    assert found.attributes.fqans == FQANS
    assert found.attributes.server == server.subject
    assert found.usable_until == pytest.approx(time.time() + 12 * 3600, abs=120)
    nobody = looked_at(grid, proxy, tmp_path / "none")
    assert nobody.attributes is None
    assert "demo/voms.example.org.lsc" in nobody.attributes_fault
    assert nobody.fqans == FQANS
    assert (found.role, nobody.role) == ("/demo/Role=pilot", "")


def faked(grid: Grid, user: Certified, server: Certified, directory: Path) -> bytes:
    files = {}
    for name, certified in (("user", user), ("host", server)):
        files[name] = directory / f"{name}.cert", write_private(directory / f"{name}.key", key_pem(certified.key))
        files[name][0].write_bytes(certified.certificate.public_bytes(PEM))
    out = directory / "fake.pem"
    command = [
        "voms-proxy-fake", "-rfc", "-cert", files["user"][0], "-key", files["user"][1],
        "-certdir", grid.certificates_dir, "-voms", "demo", "-uri", f"{HOST}:15000",
        "-hostcert", files["host"][0], "-hostkey", files["host"][1], "-newformat", "-hours", "12", "-out", out,
    ]  # fmt: skip
    for fqan in FQANS:
        command += ["-fqan", fqan]
    done = subprocess.run(command, capture_output=True, check=False, timeout=30, env={"HOME": str(directory)})
    assert out.exists(), done.stderr
    return out.read_bytes()


@pytest.mark.parametrize("key", ["rsa", "ec"])
def test_ours_is_believed_by_the_servers_certificate(tmp_path: Path, key: KeyKind) -> None:
    grid = make_grid(tmp_path)
    alice, server = grid.user("Alice Adams"), grid.host(HOST, key=key)
    proxy = make_proxy(alice, extensions=[voms_extension(alice, server, FQANS, lifetime_s=600)])
    found = looked_at(grid, make_proxy(proxy, kind="limited"), with_certificate(server, tmp_path / "vomsdir"))
    assert found.attributes is not None
    assert found.attributes.fqans == FQANS
    assert found.usable_until == pytest.approx(time.time() + 600, abs=30)
    assert found.usable_until < found.expires_at


def test_attributes_that_are_not_to_be_believed_leave_the_proxy_its_owners(tmp_path: Path) -> None:
    """Each with one thing wrong; the words say which."""
    grid = make_grid(tmp_path)
    alice, bob, server = grid.user("Alice Adams"), grid.user("Bob Baker"), grid.host(HOST)
    stranger = make_grid(tmp_path / "elsewhere", name="Other CA")
    voms_dir = with_certificate(server, tmp_path / "vomsdir")
    impostor = Certified(server.certificate, stranger.host(HOST).key)
    unknown = stranger.host("voms.elsewhere.org")
    wrong = {
        "another certificate": voms_extension(bob, server, FQANS),
        "ended on": voms_extension(alice, server, FQANS, lifetime_s=-60),
        "not signed by": voms_extension(alice, impostor, FQANS),
        "Ask the site to add the VO": voms_extension(alice, unknown, FQANS),
        "does not say of which VO": voms_extension(alice, server, FQANS, vo="../demo"),
        "groups of another VO": voms_extension(alice, server, ["/other/Role=pilot"]),
    }
    for words, extension in wrong.items():
        found = looked_at(grid, make_proxy(alice, extensions=[extension]), voms_dir)
        assert found.attributes is None
        assert words in found.attributes_fault
        assert found.identity == alice.identity
        assert found.usable_until == found.expires_at
    for starts_s, words in ((200, ""), (600, "is the clock right")):
        proxy = make_proxy(alice, extensions=[voms_extension(alice, server, FQANS, starts_s=starts_s)])
        assert words in looked_at(grid, proxy, voms_dir).attributes_fault
        assert (looked_at(grid, proxy, voms_dir).attributes is None) is bool(words)


def test_a_server_with_a_certificate_of_a_ca_that_the_site_does_not_trust_is_not_believed(tmp_path: Path) -> None:
    grid, other = make_grid(tmp_path), make_grid(tmp_path / "elsewhere", name="Other CA")
    alice, server = grid.user("Alice Adams"), other.host(HOST)
    voms_dir = with_certificate(server, tmp_path / "vomsdir")
    found = looked_at(grid, make_proxy(alice, extensions=[voms_extension(alice, server, FQANS)]), voms_dir)
    assert found.attributes is None
    assert "does not trust" in found.attributes_fault


def test_a_renewal_must_be_the_same_person_ca_and_role(tmp_path: Path) -> None:
    grid, other = make_grid(tmp_path), make_grid(tmp_path, name="Second CA")
    alice, bob, server = grid.user("Alice Adams"), grid.user("Bob Baker"), grid.host(HOST)
    voms_dir = with_certificate(server, tmp_path / "vomsdir")

    def proxy(owner: Certified, *fqans: str, signer: Certified = server) -> Credential:
        extensions = [voms_extension(owner, signer, fqans)] if fqans else []
        return looked_at(grid, make_proxy(owner, extensions=extensions), voms_dir)

    old = proxy(alice, "/demo/Role=pilot", "/demo")
    same = (
        proxy(alice, "/demo/Role=pilot/Capability=NULL", "/demo/other"),  # other groups behind the primary one
        proxy(grid.user("Alice Adams"), "/demo/Role=pilot"),  # a new certificate for the same name
    )
    for new in same:
        assert credentials.change_of(old, new) == ""
    changed = {
        "Bob Baker": proxy(bob, "/demo/Role=pilot"),
        "Second CA": proxy(other.user("Alice Adams"), "/demo/Role=pilot"),
        "/demo, not /demo/Role=pilot": proxy(alice, "/demo"),
        "none, not /demo/Role=pilot": proxy(alice),
        "cannot be verified any more": proxy(alice, "/demo/Role=pilot", signer=bob),
    }
    for words, new in changed.items():
        assert words in credentials.change_of(old, new)
    assert "/demo, not none" in credentials.change_of(proxy(alice), proxy(alice, "/demo"))
