"""Pool accounts: leases that LCMAPS and what stands in for it share."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.grid import make_proxy
from tests.glexec.judges import (
    DENIED_WORDS,
    by_judge,
    codes,
    db,
    leases,
    lend,
    user,
)

pytestmark = pytest.mark.needs_root


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
