"""The site's policy without LCMAPS: the same db file, the plugins that sites use, written out here.

For hosts where LCMAPS is not installed. Whatever a policy asks for that is not offered (another
plugin, another option) is a broken site (202), never a yes. One thing is stricter than LCMAPS: nothing
is mapped unless the policy has verified the chain before.
"""

import pwd

from glexec import chains, gridmapdir, mapfiles, policy, voms
from glexec.codes import DENIED, INTERNAL, Failure
from glexec.credential import Credential

TYPE_CHECKING = False  # the typing module costs milliseconds
if TYPE_CHECKING:
    from collections.abc import Callable

_FLAG, _VALUE = 0, 1  # how many words an option takes
_YES = ("yes", "true", "1")
_LIMIT_STEPS = 100  # a policy that comes back to a state is refused before


class Session:
    """One credential on its way through a policy, and what the plugins have found so far."""

    def __init__(self, holder: Credential, certificates_dir: str, voms_dir: str) -> None:
        self.holder = holder
        self.dn = holder.dn
        self.certificates_dir = certificates_dir
        self.voms_dir = voms_dir
        self.is_verified = False
        self.fqans = None  # type: list[str] | None
        self.uid = None  # type: int | None
        self.gids = []  # type: list[int]
        self.secondary = []  # type: list[int]
        self.lease = ""
        self.said = []  # type: list[str]  # for the site's log

    def say(self, text: str) -> bool:
        """Why a plugin says no."""
        self.said.append(text)
        return False

    def require_verified(self) -> None:
        if not self.is_verified:
            raise Failure(INTERNAL, "the policy maps before it has verified the credential")

    def attributes(self) -> "list[str]":
        """The verified FQANs."""
        self.require_verified()
        if self.fqans is None:
            self.fqans = voms.verified(self.holder, self.certificates_dir, self.voms_dir)
        return self.fqans

    def take(self, account: str) -> bool:
        """Map to a local account: uid, its group, and the groups that list it."""
        import os

        try:
            entry = pwd.getpwnam(account)
        except KeyError:
            return self.say("there is no account %s" % account)
        if self.uid is not None and self.uid != entry.pw_uid:
            raise Failure(INTERNAL, "the policy maps to two accounts")
        self.uid = entry.pw_uid
        if not self.gids:
            self.gids = [entry.pw_gid]
            others = set(os.getgrouplist(account, entry.pw_gid)) - {entry.pw_gid}
            self.secondary = sorted(others | set(self.secondary))
        return True


def decide(text: str, name: str, session: Session) -> None:
    """Walk through the policy; the session holds the mapping, or Failure says 202 or 203."""
    database = policy.parse(text)
    if name not in database.policies:
        raise Failure(INTERNAL, "the LCMAPS db has no policy named %s" % name[:64])
    chosen = database.policies[name]
    plugins = {state: _plugin(words) for state, words in database.plugins.items() if _is_used(chosen, state)}
    state, good, seen = chosen.start, True, set()  # type: tuple[str, bool, set[str]]
    while state:
        if state in seen or len(seen) == _LIMIT_STEPS:
            raise Failure(INTERNAL, "the policy comes back to %s" % state)
        seen.add(state)
        run, options = plugins[state]
        good = run(session, options)
        rule = chosen.rules.get(state)
        following = "" if rule is None else rule.success if good else rule.failure
        if rule is not None and good and not rule.success:
            break  # `~state -> other`: nothing follows success
        state = following
    if session.is_verified:
        session.attributes()  # a forged attribute certificate is refused by every policy
    if not good or session.uid is None:
        raise Failure(DENIED, "denied: the site's policy does not map this credential")


def _is_used(chosen: policy.Policy, state: str) -> bool:
    return state in chosen.rules or any(state in (rule.success, rule.failure) for rule in chosen.rules.values())


def _plugin(words: "list[str]") -> "tuple[Callable[[Session, dict[str, str]], bool], dict[str, str]]":
    module = words[0].rpartition("/")[2]
    if module not in _PLUGINS:
        raise Failure(INTERNAL, "without LCMAPS the plugin %s is not offered" % module[:64])
    run, known = _PLUGINS[module]
    options, place = {}, 1  # type: tuple[dict[str, str], int]
    while place < len(words):
        key = words[place].lstrip("-")
        if not words[place].startswith("-") or key not in known:
            raise Failure(INTERNAL, "without LCMAPS %s has no option %s" % (module, words[place][:64]))
        if known[key] == _VALUE and place + 1 == len(words):
            raise Failure(INTERNAL, "%s: %s needs a value" % (module, words[place]))
        options[key] = words[place + 1] if known[key] == _VALUE else "yes"
        place += 1 + known[key]
    return run, options


def _needed(options: "dict[str, str]", *names: str) -> str:
    for name in names:
        if name in options:
            return options[name]
    raise Failure(INTERNAL, "the LCMAPS db: -%s is missing" % names[0])


def _count(options: "dict[str, str]", name: str) -> "int | None":
    """An option that is a number; None where the policy does not have it."""
    text = options.get(name)
    if text is not None and not text.isdecimal():
        raise Failure(INTERNAL, "the LCMAPS db: -%s %s is not a number" % (name, text[:20]))
    return None if text is None else int(text)


def _wildcards(options: "dict[str, str]") -> bool:
    return "no_wildcard" not in options and "disablewildcard" not in options


# The plugins: true = success. What they cannot decide is a Failure.


def _verify_proxy(session: Session, options: "dict[str, str]") -> bool:
    limited = "allow"
    for rule in chains.LIMITED_RULES:
        if rule + "-limited-proxy" in options:
            limited = rule
    session.certificates_dir = _needed(options, "certdir", "cadir", "capath")
    try:
        chains.verify(session.holder, session.certificates_dir, limited)
    except chains.Untrusted as error:
        if error.code != DENIED:
            raise
        return session.say(error.details)
    session.is_verified = True
    return True


def _ban_dn(session: Session, options: "dict[str, str]") -> bool:
    if mapfiles.lists(_needed(options, "banmapfile"), session.dn, _wildcards(options)):
        return session.say("%s is banned" % session.dn)
    return True


def _ban_fqan(session: Session, options: "dict[str, str]") -> bool:
    file = _needed(options, "banmapfile")
    for fqan in session.attributes():
        if mapfiles.lists_fqan(file, fqan, _wildcards(options)):
            return session.say("%s is banned" % fqan)
    mapfiles.entries(file)  # a ban file that is missing or broken stops those without FQANs, too
    return True


def _localaccount(session: Session, options: "dict[str, str]") -> bool:
    session.require_verified()
    file = _needed(options, "gridmapfile", "gridmap")
    found = mapfiles.mappings(file, session.dn, _wildcards(options), pools=False)
    return session.take(found[0]) if found else session.say("%s has no local account" % session.dn)


def _poolaccount(session: Session, options: "dict[str, str]") -> bool:
    session.require_verified()
    found = mapfiles.mappings(_needed(options, "gridmapfile", "gridmap"), session.dn, _wildcards(options), pools=True)
    return _lease(session, options, found, [])


def _lease(session: Session, options: "dict[str, str]", pools: "list[str]", groups: "list[str]") -> bool:
    if not pools:
        return session.say("no pool")
    try:
        account = gridmapdir.lease(
            _needed(options, "gridmapdir"),
            session.dn,
            groups,
            pools[0][1:],
            strict=options.get("strict_poolprefix_match", "yes") in _YES,
            override="override_inconsistency" in options,
        )
    except gridmapdir.Refused as error:
        if error.code != DENIED:
            raise
        return session.say(error.details)
    session.lease = gridmapdir.lease_name(session.dn, groups)
    return session.take(account)


def _voms_localgroup(session: Session, options: "dict[str, str]") -> bool:
    import grp

    file, found = _needed(options, "groupmapfile", "groupmap"), []  # type: tuple[str, list[int]]
    least = max(1, _count(options, "mapmin") or 0)
    fqans = session.attributes()
    for number, fqan in enumerate(fqans):
        names = mapfiles.mappings(file, fqan, _wildcards(options), pools=False)
        try:
            gids = [grp.getgrnam(names[0]).gr_gid] if names else []
        except KeyError:
            return session.say("there is no group %s" % names[0])
        if not gids and (number == 0 or "mapall" in options):
            return session.say("%s has no group" % fqan)
        found += [gid for gid in gids if gid not in found]
    if len(found) < least:
        return session.say("too few groups for its FQANs" if fqans else "no verified FQANs")
    if "map-to-secondary-groups" in options:
        session.secondary += found
    else:
        session.gids, session.secondary = found[:1], session.secondary + found[1:]
    return True


def _voms_localaccount(session: Session, options: "dict[str, str]") -> bool:
    file = _needed(options, "gridmapfile", "gridmap")
    for fqan in session.attributes():
        found = mapfiles.mappings(file, fqan, _wildcards(options), pools=False)
        if found:
            return _take_for_vo(session, options, found[0])
    return session.say("no FQAN with a local account")


def _take_for_vo(session: Session, options: "dict[str, str]", account: str) -> bool:
    if not session.gids and "use-account-gid" not in options:
        return session.say("no group for the primary FQAN")
    return session.take(account)


def _voms_poolaccount(session: Session, options: "dict[str, str]") -> bool:
    import grp

    file = _needed(options, "gridmapfile", "gridmap")
    try:
        groups = [grp.getgrgid(gid).gr_name for gid in session.gids + session.secondary]
    except KeyError:
        raise Failure(INTERNAL, "a group without a name") from None
    if not groups and "use-account-gid" not in options:
        return session.say("no group for the primary FQAN")
    for fqan in session.attributes():
        found = mapfiles.mappings(file, fqan, _wildcards(options), pools=True)
        if found:
            return _lease(session, options, found, groups)
    return session.say("no FQAN with a pool")


def _dummy_good(session: Session, options: "dict[str, str]") -> bool:
    import grp

    if "dummy-username" in options and not session.take(options["dummy-username"]):
        return False
    try:
        for option, groups in (
            ("dummy-group", session.gids),
            ("dummy-sec-group", session.secondary),
        ):
            if option in options:
                groups[:] = [grp.getgrnam(options[option]).gr_gid]
    except KeyError:
        return session.say("a group that does not exist")
    return True


def _dummy_bad(session: Session, options: "dict[str, str]") -> bool:
    return session.say("dummy_bad")


def _posix_enf(session: Session, options: "dict[str, str]") -> bool:
    """Its limits only: the root part itself changes the identity, and verifies it."""
    for option, numbers in (("maxpgid", session.gids), ("maxsgid", session.secondary)):
        limit = _count(options, option)
        if limit is not None and len(numbers) > limit:
            return session.say("more groups than -%s %d allows" % (option, limit))
    return True


_PATTERNS = {"no_wildcard": _FLAG, "disablewildcard": _FLAG}
_MAP = dict(_PATTERNS, gridmapfile=_VALUE, gridmap=_VALUE)
_POOL = dict(_MAP, gridmapdir=_VALUE, override_inconsistency=_FLAG, strict_poolprefix_match=_VALUE)
_GROUPS = dict(_PATTERNS, groupmapfile=_VALUE, groupmap=_VALUE, mapall=_FLAG, mapmin=_VALUE)
_GROUPS["map-to-secondary-groups"] = _FLAG
_ACCOUNT = {"use-account-gid": _FLAG}
_VERIFY = {"certdir": _VALUE, "cadir": _VALUE, "capath": _VALUE}
_VERIFY.update({rule + "-limited-proxy": _FLAG for rule in chains.LIMITED_RULES})
_DUMMY = {"dummy-username": _VALUE, "dummy-group": _VALUE, "dummy-sec-group": _VALUE}
_PLUGINS = {
    "lcmaps_verify_proxy.mod": (_verify_proxy, _VERIFY),
    "lcmaps_ban_dn.mod": (_ban_dn, dict(_PATTERNS, banmapfile=_VALUE)),
    "lcmaps_ban_fqan.mod": (_ban_fqan, dict(_PATTERNS, banmapfile=_VALUE)),
    "lcmaps_localaccount.mod": (_localaccount, _MAP),
    "lcmaps_poolaccount.mod": (_poolaccount, _POOL),
    "lcmaps_voms_localgroup.mod": (_voms_localgroup, _GROUPS),
    "lcmaps_voms_localaccount.mod": (_voms_localaccount, dict(_MAP, **_ACCOUNT)),
    "lcmaps_voms_poolaccount.mod": (_voms_poolaccount, dict(_POOL, **_ACCOUNT)),
    "lcmaps_dummy_good.mod": (_dummy_good, _DUMMY),
    "lcmaps_dummy_bad.mod": (_dummy_bad, {}),
    "lcmaps_posix_enf.mod": (_posix_enf, {"maxuid": _VALUE, "maxpgid": _VALUE, "maxsgid": _VALUE}),
}  # type: dict[str, tuple[Callable[[Session, dict[str, str]], bool], dict[str, int]]]
