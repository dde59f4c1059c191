"""A site's policies: the same text for LCMAPS and for what stands in for it."""

from __future__ import annotations

import os

import pytest

from tests.glexec.judges import (
    codes,
    db,
    lend,
    user,
)

pytestmark = pytest.mark.needs_root


@pytest.mark.parametrize("limited", ["disallow", "require"])
def test_a_site_may_forbid_limited_proxies_or_full_ones(site, world, policy, limited):
    local = f"localaccount -gridmapfile {world.installed['lcmaps'].grid_mapfile}"
    policy(db(world, "verify_proxy -> local, local -> good", f"--{limited}-limited-proxy", local=local))
    for kind in ("inherit", "limited"):
        allowed = (kind == "limited") == (limited == "require")
        assert codes(site, world, user("Alice", kind=kind)(world)) == {0 if allowed else 203}


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


# What the WLCG gLExec deployment page prints: its label is missing, and its path and group are EL's.
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
