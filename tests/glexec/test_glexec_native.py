"""The native side's readers, without a call: policies, maps, leases, DER, signing policies. Garbage ends in order."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from demo.grid import make_grid, make_proxy
from glexec import chains, conf, decision, der, gridmapdir, installtexts, lcmaps, mapfiles, native, policy, voms
from glexec.codes import DENIED, INTERNAL, Failure

# Policies

DB = """path = /usr/lib/lcmaps
v = "lcmaps_verify_proxy.mod"
    " -certdir /c"    # a comment
    " --allow-limited-proxy"
b = "lcmaps_ban_dn.mod" "-banmapfile /b"
l = lcmaps_dummy_good.mod

one:
v -> b
b -> l | b2
~b2 -> l
two: l -> v
"""


def test_a_policy_file_is_parsed():
    text = DB.replace("path", 'b2 = "x.mod"\npath')
    found = policy.parse(text)
    assert found.plugins["v"] == ["lcmaps_verify_proxy.mod", "-certdir", "/c", "--allow-limited-proxy"]
    assert set(found.policies) == {"one", "two"}
    one = found.policies["one"]
    assert one.start == "v"
    assert {name: (rule.success, rule.failure) for name, rule in one.rules.items()} == {
        "v": ("b", ""),
        "b": ("l", "b2"),
        "b2": ("", "l"),
    }


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("b2\n", "\n"),
        ("v -> b\n", "v -> b\nv -> l\n"),
        ("two: l -> v", "one:\nl -> v"),
        ("two: l -> v", "two:"),
        ("two: l -> v", 'two: l -> v\nlate = "x"'),
        ('"-banmapfile /b"', '"-banmapfile /b'),
        ("l -> v", "l -> nowhere"),
        ("l -> v", "nowhere -> v"),
        ("l -> v", "l - > v"),
        ("v -> b", "v ->"),
        ("v -> b", "-> b"),
        ("l = lcmaps_dummy_good.mod", "l ="),
        ("one:", "one-1:"),
    ],
)
def test_a_broken_policy_is_the_sites_fault(old, new):
    text = DB.replace("path", 'b2 = "x.mod"\npath')
    assert old in text
    with pytest.raises(Failure) as caught:
        policy.parse(text.replace(old, new, 1))
    assert caught.value.code == INTERNAL


@given(st.text(alphabet=st.sampled_from('ab:=->|~" \n#\\/.p'), max_size=120))
def test_no_text_breaks_the_parser(text):
    with suppress(Failure):
        assert all(one.start in one.rules for one in policy.parse(text).policies.values())


def test_a_missing_label_is_added_where_there_is_no_doubt():
    rules = "v -> l\n"
    head = 'v = "a -> b"\nl = "x"\n'
    warnings: list[str] = []
    assert policy.adapted(head + rules, "p", warnings) == head + "p:\n" + rules
    assert len(warnings) == 1
    for text in (head + "p:\n" + rules, head + "q:\n" + rules, head + rules + "p:\n" + rules, head, "", "# a -> b\n"):
        before = list(warnings)
        assert policy.adapted(text, "p", warnings) == text
        assert warnings == before


# Maps


def test_a_mapfile_is_parsed():
    text = '# c\n"/CN=a b" one, .two\tthree\n/CN=c four\n\n"/CN=d"\n"/CN=e" a\\,b\n'
    assert mapfiles.parsed(text, "f") == [
        ("/CN=a b", ["one", ".two", "three"]),
        ("/CN=c", ["four"]),
        ("/CN=d", []),
        ("/CN=e", ["a,b"]),
    ]
    for broken in ('"/CN=a one\n', '"" one\n'):
        with pytest.raises(Failure, match="f: line 2: ") as caught:
            mapfiles.parsed("# c\n" + broken, "f")
        assert caught.value.code == INTERNAL


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("/CN=a", "/CN=a", True),
        ("/CN=a", "/CN=A", False),
        ("/CN=*", "/CN=a/CN=b", True),  # as fnmatch without FNM_PATHNAME
        ("/CN=[ab]", "/CN=a", True),
        ("/CN=[ab]", "/CN=[ab]", True),
        ("/CN=?", "/CN=ab", False),
        ("/CN=\\*", "/CN=\\x", True),  # no escapes
        ("/CN=a*", "/CN=a\0b", False),
    ],
)
def test_patterns_are_the_c_librarys(pattern, name, matches):
    assert mapfiles.matcher(True)(pattern, name) == matches
    assert mapfiles.matcher(False)(pattern, name) == (pattern == name)


# Leases


def test_a_lease_has_lcmapss_name():
    """The example is what LCMAPS 1.6.6 was seen to write."""
    dn = "/DC=org/DC=test/OU=People/CN=Alice O'Neil 123"
    assert gridmapdir.lease_name(dn, []) == "%2fdc%3dorg%2fdc%3dtest%2fou%3dpeople%2fcn%3dalice%20o%27neil%20123"
    assert gridmapdir.lease_name("/A", ["g1", "g2"]) == "%2fa:g1:g2"
    assert gridmapdir.lease_name("/é", []) == "%2f%c3%a9"


@pytest.mark.parametrize(
    ("account", "prefix", "strict", "loose"),
    [
        ("pool001", "pool", True, True),
        ("pool", "pool", False, False),
        ("poola", "pool", False, True),
        ("pool1a", "pool", False, True),
        ("other1", "pool", False, False),
        ("root", "roo", False, False),
        ("pool²", "pool", False, True),
    ],
)
def test_which_account_is_of_a_pool(account, prefix, strict, loose):
    assert gridmapdir.is_of_pool(account, prefix, True) == strict
    assert gridmapdir.is_of_pool(account, prefix, False) == loose


def leased(directory: Path, dn: str, **more) -> str:
    options = {"strict": True, "override": False, **more}
    return gridmapdir.lease(str(directory), dn, [], "pool", **options)


def test_leases_come_go_and_never_double(tmp_path):
    for name in ("pool001", "pool002", "pool", "root", "~pool3", ".hidden"):
        (tmp_path / name).touch()
    first, second = leased(tmp_path, "/CN=a"), leased(tmp_path, "/CN=b")
    assert {first, second} == {"pool001", "pool002"}
    assert leased(tmp_path, "/CN=a") == first
    with pytest.raises(gridmapdir.Refused) as caught:
        leased(tmp_path, "/CN=c")
    assert caught.value.code == DENIED
    (tmp_path / gridmapdir.lease_name("/CN=a", [])).unlink()  # the administrator takes it back, and leaves the note
    assert leased(tmp_path, "/CN=c") == first
    with pytest.raises(gridmapdir.Refused, match="does not map") as caught:
        leased(tmp_path, "/CN=C")
    assert "/CN=c" in caught.value.details


def test_two_persons_never_take_one_account_in_the_same_moment(tmp_path, monkeypatch):
    """Each has found it free; the links tell."""
    for name in ("pool1", "pool2"):
        (tmp_path / name).touch()
    real, others = os.link, []

    def link(account, lease, **more):
        if not others:
            others.append(account)
            real(tmp_path / account, tmp_path / gridmapdir.lease_name("/CN=other", []))
        real(account, lease, **more)

    monkeypatch.setattr(gridmapdir.os, "link", link)
    mine = leased(tmp_path, "/CN=a")
    assert mine not in others
    assert [(tmp_path / name).stat().st_nlink for name in ("pool1", "pool2")] == [2, 2]
    assert leased(tmp_path, "/CN=other") == others[0]


def test_the_note_of_a_lease_that_is_over_goes_to_one_person_only(tmp_path, monkeypatch):
    """Two with one lease's name find the old note; the other one is faster by a moment."""
    (tmp_path / "pool1").touch()
    note = tmp_path / ".pool1.dn"
    note.write_text("%2fcn%3dgone\n/CN=gone\n")
    real, faster = gridmapdir._take_away, []

    def take_away(*words):
        if not faster:
            faster.append(True)
            faster.append(leased(tmp_path, "/CN=AL"))
        real(*words)

    monkeypatch.setattr(gridmapdir, "_take_away", take_away)
    with pytest.raises(gridmapdir.Refused) as caught:
        leased(tmp_path, "/CN=al")
    assert caught.value.code == DENIED
    assert faster[1] == "pool1"
    assert note.read_text().splitlines()[1] == "/CN=AL"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["%2fcn%3dal", ".pool1.dn", "pool1"]
    assert leased(tmp_path, "/CN=AL") == "pool1"


@pytest.mark.parametrize("spoil", ["third link", "a directory", "no account", "not a directory"])
def test_a_spoilt_gridmapdir_is_the_sites_fault(tmp_path, spoil):
    (tmp_path / "pool1").touch()
    lease = tmp_path / gridmapdir.lease_name("/CN=a", [])
    directory = tmp_path
    if spoil == "third link":
        os.link(tmp_path / "pool1", lease)
        os.link(tmp_path / "pool1", tmp_path / "%another")
    elif spoil == "a directory":
        lease.mkdir()
    elif spoil == "no account":
        (tmp_path / "elsewhere:").touch()
        os.link(tmp_path / "elsewhere:", lease)
        with pytest.raises(gridmapdir.Refused) as caught:
            gridmapdir.require_owner(str(directory), lease.name, "/CN=a")
        assert caught.value.code == INTERNAL
    else:
        directory = tmp_path / "pool1"
    with pytest.raises(gridmapdir.Refused) as caught:
        leased(directory, "/CN=a")
    assert caught.value.code == INTERNAL


def test_a_lease_of_another_pool_is_no_lease_of_this_one(tmp_path):
    (tmp_path / "other1").touch()
    os.link(tmp_path / "other1", tmp_path / gridmapdir.lease_name("/CN=a", []))
    with pytest.raises(gridmapdir.Refused) as caught:
        leased(tmp_path, "/CN=a")
    assert caught.value.code == DENIED
    assert leased(tmp_path, "/CN=a", override=True) == "other1"


# DER and attribute certificates


@given(st.binary(max_size=100))
def test_no_bytes_break_the_der_reader(data):
    try:
        found = der.nodes(data)
    except der.Bad:
        return
    assert b"".join(node.raw for node in found) == data


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    grid = make_grid(tmp_path_factory.mktemp("grid"))
    return make_proxy(grid.user("A")).certificate.public_bytes(Encoding.DER)


@given(place=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_a_damaged_certificate_is_read_or_bad(certificate, place, byte):
    place %= len(certificate)
    spoilt = certificate[:place] + bytes((byte,)) + certificate[place + 1 :]
    with suppress(der.Bad):
        assert len(der.Certificate(spoilt).serial) < len(certificate)


@pytest.mark.parametrize("data", ["3000", "30023000", "3015301302010130003000300030003000a30030003000"])
def test_a_certificate_with_nothing_where_something_belongs_is_bad(data):
    with pytest.raises(der.Bad):
        der.Certificate(bytes.fromhex(data))


@given(st.binary(max_size=200))
def test_no_bytes_break_the_attribute_reader(data):
    node = der.Node(der.SEQUENCE, data, b"\x30\x00" + data)
    with pytest.raises(chains.Untrusted):
        voms.Attributes(node)


@pytest.mark.parametrize(
    ("oid", "critical", "of_use"),
    [
        ("551d38", True, True),  # no revocation available
        ("551d37", False, False),  # targets: for other hosts
        ("551d37", True, False),
        ("2a03", True, False),  # whatever it demands
        ("2a03", False, True),
    ],
)
def test_conditions_that_are_not_understood_make_attributes_useless(oid, critical, of_use):
    attributes = object.__new__(voms.Attributes)
    attributes.starts, attributes.ends = time.time() - 60, time.time() + 60
    attributes.extensions = [(bytes.fromhex(oid), critical, b"")]
    assert voms._is_of_use(attributes) == of_use


def test_an_lsc_file_may_hold_several_chains():
    text = "# c\n/CN=s1\n/CN=ca1\n------ NEXT CHAIN ------\n/CN=s2\n/CN=ca2\n/CN=root\n--- NEXT CHAIN ---\n/CN=alone\n"
    assert voms._chains_in(text) == [("/CN=s1", "/CN=ca1"), ("/CN=s2", "/CN=ca2")]


# Signing policies


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("/C=x/*", "/C=x/CN=a", True),
        ("/C=x/*", "/C=xy/CN=a", False),
        ("*", "", True),
        ("/a*b*c", "/a1b2c", True),
        ("/a*b*c", "/a1c2b", False),
        ("/a*a", "/a", False),  # the two ends do not overlap
        ("/C=x/CN=[a]", "/C=x/CN=a", False),
    ],
)
def test_only_the_star_is_special(pattern, name, matches):
    assert chains._matches(pattern, name) == matches


def test_a_signing_policy_grants_what_it_says():
    text = (
        "# access_id_CA X509 '/CN=Other'\naccess_id_CA   X509    '/C=x/CN=CA/Email=a@b'\npos_rights globus CA:sign\n"
        "cond_subjects globus '\"/C=x/*\" \"/C=y/*\"'\naccess_id_CA X509 '/CN=Bare'\npos_rights globus CA:sign\n"
        "cond_subjects globus '/C=z/*'\naccess_id_CA X509 '/CN=None'\ncond_subjects globus '\"*\"'\n"
    )
    for issuer, name, allowed in (
        ("/C=x/CN=CA/emailAddress=a@b", "/C=y/CN=u", True),
        ("/C=x/CN=CA/emailAddress=a@b", "/C=z/CN=u", False),
        ("/CN=Bare", "/C=z/CN=u", True),
        ("/CN=None", "/C=x/CN=u", False),
        ("/CN=Other", "/C=x/CN=u", False),
    ):
        assert chains._allows(text, issuer, name) == allowed


# Who decides


def test_without_the_library_auto_falls_back_and_lcmaps_does_not(monkeypatch):
    def missing() -> None:
        raise OSError("liblcmaps.so.0: cannot open shared object file")

    monkeypatch.setattr(lcmaps, "load", missing)
    settings = conf.Settings()
    assert decision._is_native(decision._library(), settings)
    assert not decision._is_native((object(), object()), settings)
    settings.decided_by = conf.LCMAPS
    with pytest.raises(OSError, match="liblcmaps"):
        decision._is_native(decision._library(), settings)
    settings.decided_by = conf.NATIVE
    assert decision._is_native((object(), object()), settings)


@pytest.mark.parametrize(
    "line",
    [
        "use_lcas = yes",
        "user_identity_switch_by = nobody",
        "decided_by = me",
        "input_lock_mechanism = lockf",
        "log_destination = stdout",
        "syslog_facility = LOG_KERN",
        "epilogue = relative",
        "epilogue_timeout = 0",
        "log_only = maybe",
        "linger = no\nepilogue = /x",
        "silent_logging = true",
        "voms_dir = here",
    ],
)
def test_a_wrong_value_is_named(line):
    good = b"[glexec]\nlog_file = /l\nlcmaps_db_file = /d\nlcmaps_get_account_policy = p\n"
    assert conf.parse(good).decided_by == conf.AUTO
    with pytest.raises(Failure, match=r"glexec\.conf: ") as caught:
        conf.parse(good + line.encode() + b"\n")
    assert caught.value.code == INTERNAL


def test_the_installations_policies_are_whole():
    everything = {
        name: Path(f"/{name}")
        for name in ("gridmapdir", "ban_dn", "ban_fqan", "group_mapfile", "vo_mapfile", "voms_dir")
    }
    for named in ({}, everything, {"gridmapdir": Path("/g")}):
        wish = installtexts.Wish(
            linger=True, callers=("a",), certificates_dir=Path("/c"), grid_mapfile="", limited=False, **named
        )
        text = installtexts.policy_text(wish, Path("/map"), "/usr/lib/lcmaps")
        found = policy.parse(text).policies["glexec_get_account"]
        assert found.start == "verify_proxy"
        assert "--disallow-limited-proxy" in text
        assert {str(path) for name, path in named.items() if name != "voms_dir"} <= set(policy.believed(text))
        settings = conf.parse(installtexts.configuration(wish, Path("/db"), Path("/log")).encode())
        assert not settings.warnings


class Holder:
    """A credential whose chain nobody looks at."""

    dn = "/DC=org/CN=Alice"


@pytest.mark.parametrize(
    ("module", "options"),
    [
        ("posix_enf", "-maxpgid many"),
        ("posix_enf", "-maxsgid -1"),
        ("voms_localgroup", "-groupmapfile /nowhere -mapmin ²"),
    ],
)
def test_a_limit_that_is_no_number_is_the_sites_fault(module, options):
    text = f'a = "lcmaps_dummy_good.mod"\nb = "lcmaps_{module}.mod" "{options}"\np:\na -> b\n'
    with pytest.raises(Failure, match="is not a number") as caught:
        native.decide(text, "p", native.Session(Holder(), "", ""))
    assert caught.value.code == INTERNAL
