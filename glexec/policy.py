"""The text of an LCMAPS db: its policies, and which files it makes whoever follows it believe.

`parse` understands the whole language, for hosts without LCMAPS; the rest looks for words only,
because it is on the path of every call (and so without regular expressions: `re` costs 6 ms).
Decides nothing about credentials. Pure, but for `adapted`, which looks at what the node has.
"""

import os

from glexec.codes import INTERNAL, Failure

_CA_OPTIONS = ("certdir", "cadir", "capath")
_FILE_OPTIONS = (
    "vomsdir",
    "gridmapfile",
    "gridmap",
    "banmapfile",
    "groupmapfile",
    "groupmap",
    "gridmapdir",
    "groupmapdir",
)
MODULE_DIRECTORIES = ("/usr/lib/lcmaps", "/usr/lib64/lcmaps")  # Debian, EL
_TERM = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./")


def believed(text: str) -> "list[str]":
    """Paths of certificate directories, map files and ban files in a db's text."""
    return sorted(set(_values(text, (*_CA_OPTIONS, *_FILE_OPTIONS))))


def _values(text: str, options: "tuple[str, ...]") -> "list[str]":
    """The words that follow these options, in their order."""
    words = _without_comments(text).replace('"', " ").split()
    return [words[n + 1] for n in range(len(words) - 1) if words[n].lstrip("-") in options]


def plugin_places(text: str) -> "list[str]":
    """Where the library loads plugins from, as root: directories, and plugins that are named by a path."""
    found = set()
    for line in _without_comments(text).splitlines():
        words = line.replace('"', " ").replace("=", " = ").split()
        if words[:2] == ["path", "="] and len(words) > 2:
            found.add(words[2])
        found.update(word for word in words if word.endswith(".mod") and "/" in word)
    return sorted(found)


def certificates_dir(text: str) -> str:
    """The directory of trusted CAs that a db names first."""
    named = _values(text, _CA_OPTIONS)
    return named[0] if named else "/etc/grid-security/certificates"


def lease_directories(text: str) -> "list[str]":
    """The gridmapdirs that a db names."""
    return sorted(set(_values(text, ("gridmapdir",))))


def require_policy(text: str, name: str) -> None:
    """Failure(202) unless the db has the policy: a request for another one looks like a denial."""
    label = name + ":"
    if not any(line.lstrip().startswith(label) for line in _without_comments(text).splitlines()):
        raise Failure(INTERNAL, "the LCMAPS db has no policy named %s" % name[:64])


def adapted(text: str, name: str, warnings: "list[str]") -> str:
    """The text as it was meant: what is printed in the field's guides but does not work is put right, with a warning.

    Rules without a label become the policy `name`, if there is none of that name. The other
    distribution's directory of modules and its name for the group of nobody are replaced where the node has only
    its own.
    """
    text = _labelled(text, name, warnings)
    here = [directory for directory in MODULE_DIRECTORIES if os.path.isdir(directory)]
    if len(here) == 1:
        other = MODULE_DIRECTORIES[1 - MODULE_DIRECTORIES.index(here[0])]
        lines = text.split("\n")
        for number, line in enumerate(lines):
            key, equals, value = line.partition("=")
            if equals and key.strip() == "path" and value.strip().strip('"').rstrip("/") == other:
                lines[number] = "path = " + here[0]
                warnings.append("lcmaps db: path %s is not here, taking %s" % (other, here[0]))
        text = "\n".join(lines)
    if "group nobody" in text and not _has_group("nobody") and _has_group("nogroup"):
        text = text.replace("-group nobody", "-group nogroup")
        warnings.append("lcmaps db: there is no group nobody here, taking nogroup")
    return text


def _has_group(name: str) -> bool:
    import grp

    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True


def _labelled(text: str, name: str, warnings: "list[str]") -> str:
    lines = text.split("\n")
    number = 0
    while number < len(lines):
        plain = lines[number].strip()
        if not plain.startswith("#"):
            if _label_of(plain):
                return text  # no rule before the first label
            if "->" in plain.partition('"')[0]:
                break
        number += 1
    else:
        return text
    if any(_label_of(line.strip()) == name for line in lines):
        return text  # ambiguous: left as it is, and refused by whoever parses it
    warnings.append("lcmaps db: rules without a label taken as policy %s" % name[:64])
    return "\n".join([*lines[:number], name + ":", *lines[number:]])


def _label_of(line: str) -> str:
    """The label that a line starts with; empty if none."""
    word = line.partition(":")[0]
    return word if ":" in line and word and not set(word) - _TERM else ""


def _without_comments(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))


# The whole language.


class Rule:
    """What follows one state of a policy; an empty string: nothing does."""

    def __init__(self, success: str, failure: str) -> None:
        self.success = success
        self.failure = failure


class Policy:
    """The state to begin with, and the rules by state."""

    def __init__(self, start: str, rules: "dict[str, Rule]") -> None:
        self.start = start
        self.rules = rules


class Database:
    """Plugins (name -> module and its arguments) and policies by label."""

    def __init__(self) -> None:
        self.plugins = {}  # type: dict[str, list[str]]
        self.policies = {}  # type: dict[str, Policy]


def parse(text: str) -> Database:
    """A db's text; Failure(202) says where it is broken."""
    tokens = _tokens(text)
    database = Database()
    place = _parse_variables(tokens, database)
    while place < len(tokens):
        place = _parse_policy(tokens, place, database)
    return database


def _broken(why: str) -> Failure:
    return Failure(INTERNAL, "the LCMAPS db: " + why[:200])


def _tokens(text: str) -> "list[tuple[str, str]]":
    """(kind, value): term, string, label, or the sign itself."""
    found = []  # type: list[tuple[str, str]]
    for number, line in enumerate(text.split("\n"), 1):
        rest = line.strip()
        label = _label_of(rest)
        if label:
            found.append(("label", label))
            rest = rest[len(label) + 1 :].lstrip()
        while rest and rest[0] != "#":
            kind, value, size = _token(rest, number)
            found.append((kind, value))
            rest = rest[size:].lstrip()
    return found


def _token(rest: str, number: int) -> "tuple[str, str, int]":
    if rest[0] == '"':
        end = rest.find('"', 1)
        while end > 0 and rest[end - 1] == "\\":
            end = rest.find('"', end + 1)
        if end < 0:
            raise _broken("line %d: a string that is not closed" % number)
        return "string", rest[1:end].replace('\\"', '"'), end + 1
    for sign in ("->", "=", "|", "~"):
        if rest.startswith(sign):
            return sign, sign, len(sign)
    size = 0
    while size < len(rest) and rest[size] in _TERM:
        size += 1
    if not size:
        raise _broken("line %d: syntax error at %r" % (number, rest[:20]))
    return "term", rest[:size], size


def _parse_variables(tokens: "list[tuple[str, str]]", database: Database) -> int:
    place = 0
    while place < len(tokens) and tokens[place][0] == "term" and _kind(tokens, place + 1) == "=":
        name, words = tokens[place][1], []  # type: tuple[str, list[str]]
        place += 2
        if _kind(tokens, place) == "term":
            words = [tokens[place][1]]
            place += 1
        else:
            while _kind(tokens, place) == "string":
                words += tokens[place][1].split()
                place += 1
        if not words:
            raise _broken("%s has no value" % name)
        if name != "path":
            database.plugins[name] = words
    return place


def _kind(tokens: "list[tuple[str, str]]", place: int) -> str:
    return tokens[place][0] if place < len(tokens) else ""


def _parse_policy(tokens: "list[tuple[str, str]]", place: int, database: Database) -> int:
    kind, label = tokens[place]
    if kind != "label":
        raise _broken("a rule without a policy, or a variable behind one: %s" % label)
    if label in database.policies:
        raise _broken("two policies named %s" % label)
    place += 1
    start, rules = "", {}  # type: tuple[str, dict[str, Rule]]
    while place < len(tokens) and tokens[place][0] != "label":
        state, rule, place = _parse_rule(tokens, place)
        if state in rules:
            raise _broken("two rules for %s in policy %s" % (state, label))
        rules[state] = rule
        start = start or state
    if not rules:
        raise _broken("policy %s has no rules" % label)
    for rule in rules.values():
        for state in (rule.success, rule.failure):
            if state and state not in database.plugins:
                raise _broken("policy %s: %s is not defined" % (label, state))
    for state in rules:
        if state not in database.plugins:
            raise _broken("policy %s: %s is not defined" % (label, state))
    database.policies[label] = Policy(start, rules)
    return place


def _parse_rule(tokens: "list[tuple[str, str]]", place: int) -> "tuple[str, Rule, int]":
    negated = _kind(tokens, place) == "~"
    place += negated
    kinds = [_kind(tokens, place + n) for n in range(3)]
    if kinds != ["term", "->", "term"]:
        raise _broken("not a rule at %s" % (tokens[place][1] if place < len(tokens) else "the end"))
    state, first, place = tokens[place][1], tokens[place + 2][1], place + 3
    if negated:
        return state, Rule("", first), place
    if _kind(tokens, place) == "|":
        if _kind(tokens, place + 1) != "term":
            raise _broken("nothing behind | for %s" % state)
        return state, Rule(first, tokens[place + 1][1]), place + 2
    return state, Rule(first, ""), place
