"""VOMS attributes: what is mapped by them, banned by them, and forged."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from demo.grid import make_grid, make_proxy
from demo.grid_voms import VOMS_EXTENSION, voms_extension
from pilot import credentials
from tests.glexec.judges import (
    PILOT_FQAN,
    PLAIN_FQAN,
    World,
    by_judge,
    codes,
    db,
    files_of,
    flipped,
    leases,
    user,
)

pytestmark = pytest.mark.needs_root


needs_fake = pytest.mark.skipif(
    shutil.which("voms-proxy-fake") is None, reason="voms-proxy-fake (package voms-clients) is missing"
)


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
