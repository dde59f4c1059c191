"""Which files an LCMAPS db makes the library believe, so that their owners can be looked at.

Not a parser of the language: it finds what is named after the options that matter. (No regular
expressions: the import of `re` costs 6 ms on every call.)
"""

from glexec.codes import INTERNAL, Failure

_OPTIONS = (
    "certdir",
    "cadir",
    "capath",
    "gridmapfile",
    "gridmap",
    "banmapfile",
    "groupmapfile",
    "groupmap",
    "gridmapdir",
    "groupmapdir",
)


def believed(text: str) -> "list[str]":
    """Absolute paths of certificate directories, map files and ban files in a db's text."""
    words = _without_comments(text).replace('"', " ").split()
    named = {words[n + 1] for n in range(len(words) - 1) if words[n].lstrip("-") in _OPTIONS}
    return sorted(path for path in named if path.startswith("/"))


def require_policy(text: str, name: str) -> None:
    """Failure(202) unless the db has the policy: a request for another one looks like a denial."""
    label = name + ":"
    if not any(line.lstrip().startswith(label) for line in _without_comments(text).splitlines()):
        raise Failure(INTERNAL, "the LCMAPS db has no policy named %s" % name[:64])


def _without_comments(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
