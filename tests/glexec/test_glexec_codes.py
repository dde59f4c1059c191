"""The contract, A: exit codes."""

from __future__ import annotations

import os

import pytest

from demo.grid import make_grid, make_proxy

pytestmark = pytest.mark.needs_root


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"GLEXEC_CLIENT_CERT": None}, b"GLEXEC_CLIENT_CERT is not set"),
        ({"GLEXEC_CLIENT_CERT": ""}, b"GLEXEC_CLIENT_CERT is empty"),
        ({"GLEXEC_SOURCE_PROXY": ""}, b"GLEXEC_SOURCE_PROXY is empty"),
        ({"GLEXEC_TARGET_PROXY": ""}, b"GLEXEC_TARGET_PROXY is empty"),
        ({"GLEXEC_TARGET_PROXY": "/nowhere/at/all"}, b"GLEXEC_TARGET_PROXY: No such file"),
        ({"GLEXEC_TARGET_PROXY": "relative"}, b"not the absolute path"),
        ({"GLEXEC_MODE": "lcmaps_verify_account"}, b"GLEXEC_MODE"),
        *(({"GLEXEC_CONTROL_FD": str(fd)}, b"GLEXEC_CONTROL_FD is not open") for fd in range(3, 11)),
        ({"GLEXEC_CONTROL_FD": "x; id"}, b"GLEXEC_CONTROL_FD"),
        ({"GLEXEC_CONTROL_FD": "0"}, b"GLEXEC_CONTROL_FD"),
    ],
)
def test_a_client_error_is_201(site, linger, change, words):
    result = site.call("/bin/true", linger=linger, env=site.environment(**change))
    assert result.code == 201
    assert words in result.err
    assert result.err.startswith(b"glexec: ")
    assert result.out == b""


def test_t16_a_missing_command_is_201(site, linger):
    assert site.call("/nowhere/command", linger=linger).code == 201
    assert site.call("true", linger=linger).code == 201  # not a path: PATH is the caller's


def test_t15_what_cannot_be_executed_is_126(site, linger):
    assert site.call("/etc/passwd", linger=linger) == (
        126,
        b"",
        b"glexec: cannot execute the command: Permission denied\n",
    )
    script = site.base / "no-interpreter"
    script.write_text("#!/nowhere/interpreter\n")
    script.chmod(0o755)
    assert site.call(str(script), linger=linger).code == 127


def test_t02_an_expired_proxy_is_201(site, linger):
    if not (site.private / "expired.pem").exists():
        site.proxy("expired", make_proxy(site.users["Alice"], lifetime_s=-60).pem)
    result = site.call("/bin/true", linger=linger, env=site.environment("expired"))
    assert (result.code, result.err) == (201, b"glexec: the credential has expired\n")


def test_t06_to_t08_a_broken_site_is_202(site, linger, spare):
    text = spare.configuration.read_text()
    for spoiled in (None, "garbage\n", text.replace("linger = ", "linger = perhaps "), text.replace("[glexec]", "")):
        spare.configuration.unlink(missing_ok=True)
        if spoiled is not None:
            spare.configuration.write_text(spoiled)
        result = site.call("/bin/true", installed=spare)
        assert result.code == 202, spoiled
        assert result.err.startswith(b"glexec: ")
    spare.configuration.write_text(text)
    spare.lcmaps_db.unlink()
    assert site.call("/bin/true", installed=spare).code == 202
    assert site.last("decision", installed=spare)["result"] == "internal error"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda db: "this is not a policy\n" + db,
        lambda db: db.replace("glexec_get_account:", "glexec-get-account:"),
        lambda db: db.replace("glexec_get_account:", "other:"),
        lambda db: db + 'glexec_get_account:\nverify_proxy -> "',
        lambda db: db.replace("lcmaps_localaccount.mod", "lcmaps_nowhere.mod"),
        lambda db: db.replace("path = ", "path = /nowhere"),
        lambda db: db.replace("verify_proxy -> local", "nothing -> local"),
        lambda db: "",
    ],
)
def test_a_bad_policy_is_202_never_denied(site, linger, spare, spoil):
    db = spoil(spare.lcmaps_db.read_text())
    spare.lcmaps_db.write_text(db)
    result = site.call("/bin/true", installed=spare)
    assert result.code == 202, result
    assert b"denied" not in result.err


def test_a_missing_map_is_202(site, linger, spare):
    spare.grid_mapfile.unlink()
    assert site.call("/bin/true", installed=spare).code == 202


def test_t12_a_policy_that_does_not_answer_is_202(site, linger, spare):
    """A map that can't be read to its end stands for a server that does not answer."""
    spare.configuration.write_text(spare.configuration.read_text().replace("timeout = 30", "timeout = 1"))
    spare.grid_mapfile.unlink()
    os.mkfifo(spare.grid_mapfile, 0o644)
    result = site.call("/bin/true", installed=spare)
    assert (result.code, result.err) == (202, b"glexec: the mapping library gave no answer in time\n")


def test_t09_a_caller_who_is_not_listed_is_203(site, linger, spare):
    text = spare.configuration.read_text()
    spare.configuration.write_text(text.replace(f"user_white_list = {site.pilot.name}", "user_white_list = nobody"))
    assert site.call("/bin/true", installed=spare).code == 203
    assert site.last("decision", installed=spare)["result"] == "denied"
    group = text.replace(f"user_white_list = {site.pilot.name}", f"user_white_list = .{site.pilot.name}")
    spare.configuration.write_text(group)
    assert site.call("/bin/true", installed=spare).code == 0


def test_an_unmapped_user_is_203(site, linger):
    result = site.call("/bin/true", linger=linger, env=site.environment("eve"))
    assert (result.code, result.out) == (203, b"")
    assert result.err == b"glexec: denied: the site's policy does not map this credential\n"
    line = site.last("decision", linger)
    assert line["result"] == "denied"
    assert line["dn"] == site.users["Eve"].identity
    assert line["details"]  # the library's own words: for the site, not for the caller


def test_t10_a_banned_user_is_203(site, linger, spare):
    ban = spare.prefix / "etc/ban"
    ban.write_text(f'"{site.users["Alice"].identity}"\n')
    db = spare.lcmaps_db.read_text().replace("verify_proxy -> local", "verify_proxy -> ban\nban -> local")
    rule = f'ban = "lcmaps_ban_dn.mod" " -banmapfile {ban}"\n'
    spare.lcmaps_db.write_text(db.replace("good = ", rule + "good = "))
    assert site.call("/bin/true", installed=spare).code == 203
    assert site.call("/bin/true", installed=spare, env=site.environment("bob")).code == 0
    ban.unlink()


def test_a_mapping_to_root_is_refused(site, linger, spare):
    spare.grid_mapfile.write_text(f'"{site.users["Alice"].identity}" root\n')
    result = site.call("/usr/bin/id", installed=spare)
    assert (result.code, result.out) == (202, b"")


def test_a_foreign_ca_is_denied(site, linger, tmp_path):
    if not (site.private / "foreign.pem").exists():
        grid = make_grid(tmp_path, name="Foreign CA", organisation="sailplane-demo")
        site.proxy("foreign", make_proxy(grid.user("Alice")).pem)
    assert site.call("/bin/true", linger=linger, env=site.environment("foreign")).code == 203


def test_a_limited_proxy_and_a_proxys_proxy_are_mapped(site):
    first = make_proxy(site.users["Alice"], kind="limited")
    site.proxy("limited", first.pem)
    site.proxy("second", make_proxy(first, kind="limited").pem)
    for name in ("limited", "second"):
        assert site.call("/bin/true", env=site.environment(name)).code == 0
        assert site.last("decision")["dn"] == site.users["Alice"].identity


def test_an_rsa_proxy_is_mapped(site):
    site.proxy("rsa", make_proxy(site.users["Alice"], key="rsa").pem)
    assert site.call("/bin/true", env=site.environment("rsa")).code == 0
