"""Grid-mapfiles, group mapfiles and ban files: one entry a line, as LCMAPS reads them.

A DN or FQAN in double quotes or ended by a blank, then mappings separated by commas or blanks; `#`
starts a comment line; a backslash takes the next character of a mapping as it is. The first field is
a shell pattern unless the policy says `-no_wildcard`. Unlike LCMAPS, a ban on an FQAN also counts
for it with `/Capability=NULL` (or `/Role=NULL/Capability=NULL`) behind it: a ban that is silently not
applied is worse than one that is applied.
"""

from glexec.codes import INTERNAL, Failure
from glexec.trust import read

TYPE_CHECKING = False  # the typing module costs milliseconds
if TYPE_CHECKING:
    from collections.abc import Callable

_NO_ESCAPE = 2  # FNM_NOESCAPE of glibc and musl
_EMPTY_PARTS = ("/Capability=NULL", "/Role=NULL")


class Broken(Failure):
    """A file that cannot be read to its end decides nothing."""

    def __init__(self, path: str, number: int, why: str) -> None:
        super().__init__(INTERNAL, "%s: line %d: %s" % (path, number, why))


def entries(path: str) -> "list[tuple[str, list[str]]]":
    """Name and mappings of every line; Failure(202) if others can write the file, or a line is broken."""
    return parsed(read(path).decode("utf-8", "replace"), path)


def parsed(text: str, path: str) -> "list[tuple[str, list[str]]]":
    """The same, of a text. Pure."""
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith('"'):
            name, quote, rest = line[1:].partition('"')
            if not quote:
                raise Broken(path, number, "a quote that is not closed")
        else:
            name, _, rest = line.replace("\t", " ").partition(" ")
        if not name:
            raise Broken(path, number, "no name")
        found.append((name, _mappings(rest)))
    return found


def _mappings(text: str) -> "list[str]":
    """`a, b\\,c` as ["a", "b,c"]."""
    words, word, is_escaped = [], "", False
    for char in text:
        if is_escaped or char not in ", \t\\":
            word += char
            is_escaped = False
        elif char == "\\":
            is_escaped = True
        elif word:
            words.append(word)
            word = ""
    return [*words, word] if word else words


def matcher(wildcards: bool) -> "Callable[[str, str], bool]":
    """Does a first field mean this name? By the C library's own patterns, as LCMAPS."""
    if not wildcards:
        return lambda pattern, name: pattern == name
    import ctypes

    fnmatch = ctypes.CDLL(None).fnmatch

    def matches(pattern: str, name: str) -> bool:
        if "\0" in name:
            return False
        wanted, given = pattern.encode("utf-8", "surrogateescape"), name.encode("utf-8", "surrogateescape")
        return wanted == given or fnmatch(wanted, given, _NO_ESCAPE) == 0

    return matches


def mappings(path: str, name: str, wildcards: bool, pools: "bool | None") -> "list[str]":
    """What the file maps the name to: account names, or pools (with their dot) only; both for None.

    Of the first line that has any of the kind; empty if none has.
    """
    matches = matcher(wildcards)
    for pattern, targets in entries(path):
        fitting = [target for target in targets if pools is None or target.startswith(".") == pools]
        if fitting and matches(pattern, name):
            return fitting
    return []


def lists(path: str, name: str, wildcards: bool) -> bool:
    """Is a DN in a ban file?"""
    matches = matcher(wildcards)
    return any(matches(pattern, name) for pattern, _ in entries(path))


def lists_fqan(path: str, fqan: str, wildcards: bool) -> bool:
    """Is an FQAN in a ban file, in full or without its empty parts?"""
    spellings = [fqan]
    for part in _EMPTY_PARTS:
        if spellings[-1].endswith(part):
            spellings.append(spellings[-1][: -len(part)])
    matches = matcher(wildcards)
    return any(matches(pattern, one) for pattern, _ in entries(path) for one in spellings)
