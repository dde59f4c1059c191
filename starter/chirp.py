"""The Chirp protocol between a job and its starter: requests as lines, answers as numbers. Pure.

Source: HTCondor's chirp protocol, version 2, as its client `htcondor.htchirp` speaks it. A request is a line of words;
a backslash takes the next character as it is. Who may do what, and what becomes of a request, is decided here; calls to
the submit side are made by `starter.chirpserver`.
"""

from __future__ import annotations

import errno
import fnmatch
import re
from collections.abc import Mapping, Sequence
from enum import IntEnum
from functools import lru_cache

import attrs
from classad2 import ClassAd

from cedar.classads import is_private, parse_old
from cedar.commands import OpenFlag, Syscall
from cedar.errors import PeerFault
from cedar.expressions import MAX_TOKENS, from_old

VERSION = 2
# Of a request, with its line end.
LINE_BYTES = 5120
# Of one read or write: larger ones have to be made in pieces. Whole files go by getfile and putfile, in pieces of ours.
DATA_BYTES = 4 * 1024 * 1024
# Of an attribute's value that is kept for the next update (stock: 993 characters).
EXPRESSION_CHARACTERS = 993
# Of all that is kept for it: the rest of what an ad may have is the update's own.
DELAYED_TOKENS = MAX_TOKENS // 2
# Info of a generic event is cut off here by stock.
EVENT_CHARACTERS = 127
_ATTRIBUTE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}\Z")


class Code(IntEnum):
    """What is answered instead of a result."""

    NOT_AUTHENTICATED = -1
    NOT_AUTHORIZED = -2
    DOESNT_EXIST = -3
    ALREADY_EXISTS = -4
    TOO_BIG = -5
    NO_SPACE = -6
    NO_MEMORY = -7
    INVALID_REQUEST = -8
    TOO_MANY_OPEN = -9
    BUSY = -10
    TRY_AGAIN = -11
    BAD_FD = -12
    IS_DIR = -13
    NOT_DIR = -14
    NOT_EMPTY = -15
    CROSS_DEVICE_LINK = -16
    OFFLINE = -17
    UNKNOWN = -127


_BY_ERRNO = {
    errno.EPERM: Code.NOT_AUTHORIZED, errno.EACCES: Code.NOT_AUTHORIZED, errno.ENOENT: Code.DOESNT_EXIST,
    errno.EEXIST: Code.ALREADY_EXISTS, errno.EFBIG: Code.TOO_BIG, errno.ENOSPC: Code.NO_SPACE,
    errno.ENOMEM: Code.NO_MEMORY, errno.EBADF: Code.BAD_FD, errno.E2BIG: Code.INVALID_REQUEST,
    errno.EINVAL: Code.INVALID_REQUEST, errno.ENFILE: Code.TOO_MANY_OPEN, errno.EMFILE: Code.TOO_MANY_OPEN,
    errno.EBUSY: Code.BUSY, errno.ETXTBSY: Code.BUSY, errno.EAGAIN: Code.TRY_AGAIN, errno.EINTR: Code.TRY_AGAIN,
    errno.EISDIR: Code.IS_DIR, errno.ENOTDIR: Code.NOT_DIR, errno.ENOTEMPTY: Code.NOT_EMPTY,
    errno.EXDEV: Code.CROSS_DEVICE_LINK, errno.ETIMEDOUT: Code.OFFLINE,
}  # fmt: skip


class Refused(Exception):
    """The request gets this code for an answer."""

    def __init__(self, code: Code) -> None:
        super().__init__(code.name)
        self.code = code


def code_of(number: int) -> Code:
    """The code for an errno of the submit side."""
    return _BY_ERRNO.get(number, Code.UNKNOWN)


# --- requests ----------------------------------------------------------------------------------------------------


@attrs.frozen
class Request:
    """A request's name, and its words as the name's signature wants them: text or whole numbers."""

    name: str
    words: tuple[str | int, ...]

    def text(self, place: int) -> str:
        word = self.words[place]
        assert isinstance(word, str)
        return word

    def number(self, place: int) -> int:
        word = self.words[place]
        assert isinstance(word, int)
        return word


# Name -> (what the job must have asked for, the kinds of its words: s text, d whole number, f a file that it opened).
SIGNATURES = {
    "version": ("", ""),
    "get_job_attr": ("updates", "s"), "set_job_attr": ("updates", "ss"), "constrain": ("updates", "s"),
    "ulog": ("updates", "s"),
    "get_job_attr_delayed": ("delayed", "s"), "set_job_attr_delayed": ("delayed", "ss"),
    "open": ("files", "ssd"), "close": ("files", "f"), "read": ("files", "fd"), "write": ("files", "fd"),
    "pread": ("files", "fdd"), "pwrite": ("files", "fdd"), "sread": ("files", "fdddd"), "swrite": ("files", "fdddd"),
    "lseek": ("files", "fdd"), "fsync": ("files", "f"), "fstat": ("files", "f"), "fstatfs": ("files", "f"),
    "fchown": ("files", "fdd"), "fchmod": ("files", "fd"), "ftruncate": ("files", "fd"),
    "getfile": ("files", "s"), "putfile": ("files", "sdd"), "getdir": ("files", "s"), "getlongdir": ("files", "s"),
    "unlink": ("files", "s"), "rename": ("files", "ss"), "mkdir": ("files", "sd"), "rmdir": ("files", "s"),
    "rmall": ("files", "s"), "lookup": ("files", "s"), "link": ("files", "ss"), "symlink": ("files", "ss"),
    "readlink": ("files", "sd"), "stat": ("files", "s"), "lstat": ("files", "s"), "statfs": ("files", "s"),
    "access": ("files", "sd"), "chmod": ("files", "sd"), "chown": ("files", "sdd"), "lchown": ("files", "sdd"),
    "truncate": ("files", "sd"), "utime": ("files", "sdd"), "whoami": ("files", "d"), "whoareyou": ("files", "sd"),
}  # fmt: skip


def parse(line: bytes, wishes: frozenset[str]) -> Request:
    """A request without its line end. ``wishes``: what the job asked for and the site allows.

    Raises:
        Refused: it is none, or not allowed.
    """
    words = split_words(line)
    name = words[0] if words else ""
    if name not in SIGNATURES:
        raise Refused(Code.INVALID_REQUEST)
    wish, kinds = SIGNATURES[name]
    if wish and wish not in wishes:
        raise Refused(Code.NOT_AUTHORIZED)
    if len(words) - 1 != len(kinds):
        raise Refused(Code.INVALID_REQUEST)
    return Request(name, tuple(_word(kind, word) for kind, word in zip(kinds, words[1:], strict=True)))


def line_end(data: bytes | bytearray) -> int:
    """Where the first line ends; -1 where it has no end within LINE_BYTES. A line end after a backslash is a part of a
    word: what the client quotes as one word must not become a request of its own."""
    end = data.find(b"\n", 0, LINE_BYTES)
    while end >= 0 and (end - len(data[:end].rstrip(b"\\"))) % 2:
        end = data.find(b"\n", end + 1, LINE_BYTES)
    return end


def split_words(line: bytes) -> list[str]:
    """Words between white space; a backslash takes the next character as it is."""
    words: list[str] = []
    word: bytearray | None = None
    escaped = False
    for character in line:
        if not escaped and character in b" \t\r\n\x0b\x0c":
            if word is not None:
                words.append(word.decode("utf-8", "surrogateescape"))
            word = None
            continue
        word = bytearray() if word is None else word
        if not escaped and character == 0x5C:
            escaped = True
            continue
        word.append(character)
        escaped = False
    if word is not None:
        words.append(word.decode("utf-8", "surrogateescape"))
    return words


def _word(kind: str, word: str) -> str | int:
    if kind == "s":
        if "\0" in word:
            raise Refused(Code.INVALID_REQUEST)
        return word
    if not re.fullmatch(r"[-+]?[0-9]{1,18}", word):
        raise Refused(Code.INVALID_REQUEST)
    return int(word)


def open_flags(letters: str) -> int:
    """The letters of `open`, on the wire."""
    flags = OpenFlag(0)
    if "w" in letters:
        flags |= OpenFlag.RDWR if "r" in letters else OpenFlag.WRONLY
    for letter, flag in (("c", OpenFlag.CREAT), ("t", OpenFlag.TRUNC), ("x", OpenFlag.EXCL), ("a", OpenFlag.APPEND)):
        if letter in letters:
            flags |= flag
    return int(flags)


def checked_length(length: int) -> int:
    """Of one read or write.

    Raises:
        Refused: more than DATA_BYTES, or less than nothing.
    """
    if length < 0:
        raise Refused(Code.INVALID_REQUEST)
    if length > DATA_BYTES:
        raise Refused(Code.TOO_BIG)
    return length


# --- calls to the submit side ------------------------------------------------------------------------------------

# Requests that are one call with the request's own words, and a number for an answer.
PLAIN = {
    "lseek": Syscall.LSEEK, "fsync": Syscall.FSYNC, "fchown": Syscall.FCHOWN, "fchmod": Syscall.FCHMOD,
    "ftruncate": Syscall.FTRUNCATE, "unlink": Syscall.UNLINK, "rename": Syscall.RENAME, "mkdir": Syscall.MKDIR,
    "rmdir": Syscall.RMDIR, "rmall": Syscall.RMALL, "link": Syscall.LINK, "symlink": Syscall.SYMLINK,
    "access": Syscall.ACCESS, "chmod": Syscall.CHMOD, "chown": Syscall.CHOWN, "lchown": Syscall.LCHOWN,
    "truncate": Syscall.TRUNCATE, "utime": Syscall.UTIME,
}  # fmt: skip
# The answer is a number, and then a line of text that the submit side pads with NUL characters.
STATUS = {
    "fstat": Syscall.FSTAT, "fstatfs": Syscall.FSTATFS, "stat": Syscall.STAT, "lstat": Syscall.LSTAT,
    "statfs": Syscall.STATFS,
}  # fmt: skip
# The answer is a length and so many bytes; on the wire a string, or bytes.
LISTS = {"getdir": Syscall.GETDIR, "getlongdir": Syscall.GETLONGDIR, "lookup": Syscall.GET_FILE_INFO_NEW}
BYTES = {"whoami": Syscall.WHOAMI, "whoareyou": Syscall.WHOAREYOU, "readlink": Syscall.READLINK}
READS = {"read": Syscall.READ, "pread": Syscall.PREAD, "sread": Syscall.SREAD}
WRITES = {"write": Syscall.WRITE, "pwrite": Syscall.PWRITE, "swrite": Syscall.SWRITE}


# Calls whose first word is an open file.
OF_FILES = frozenset(
    {Syscall.CLOSE, Syscall.LSEEK, Syscall.FSYNC, Syscall.FSTAT, Syscall.FSTATFS, Syscall.FCHOWN, Syscall.FCHMOD,
     Syscall.FTRUNCATE, *READS.values(), *WRITES.values()}
)  # fmt: skip


# --- attributes --------------------------------------------------------------------------------------------------


def checked_attribute(name: str) -> str:
    """An attribute's name that the job may ask for or set: any but those that carry claims and keys (T28).

    Raises:
        Refused: no name, or a private one.
    """
    if not _ATTRIBUTE.match(name):
        raise Refused(Code.INVALID_REQUEST)
    if is_private(name):
        raise Refused(Code.NOT_AUTHORIZED)
    return name


def checked_expression(text: str) -> str:
    """An expression in one line, as an ad on the wire can hold it.

    Raises:
        Refused: too long, or none.
    """
    if len(text) > EXPRESSION_CHARACTERS:
        raise Refused(Code.TOO_BIG)
    if not text.strip() or any(not character.isprintable() for character in text):
        raise Refused(Code.INVALID_REQUEST)
    try:
        ad = parse_old(f"X = {text}")
    except (PeerFault, ValueError) as fault:
        raise Refused(Code.INVALID_REQUEST) from fault
    if list(ad) != ["X"]:
        raise Refused(Code.INVALID_REQUEST)
    return text


@attrs.define
class Delayed:
    """Attributes that go out with the next update. ``patterns``: of their names, ``*`` for anything, any case."""

    patterns: Sequence[str]
    most: int
    _waiting: dict[str, str] = attrs.field(factory=dict)
    _known: set[str] = attrs.field(factory=set)

    def set(self, name: str, expression: str) -> None:
        """Keep one, in place of an earlier one of that name.

        Raises:
            Refused: not a name for this, too many, no expression, or more than one ad holds.
        """
        lower = checked_attribute(name).lower()
        if not any(fnmatch.fnmatchcase(lower, _literal(pattern.lower())) for pattern in self.patterns):
            raise Refused(Code.NOT_AUTHORIZED)
        if lower not in self._known and len(self._known) >= self.most:
            raise Refused(Code.TOO_MANY_OPEN)
        checked_expression(expression)
        waiting = {kept: text for kept, text in self._waiting.items() if kept.lower() != lower}
        waiting[name] = expression
        if sum(map(_tokens, waiting.values())) > DELAYED_TOKENS:
            raise Refused(Code.TOO_BIG)
        self._waiting = waiting
        self._known.add(lower)

    def get(self, name: str, job_ad: ClassAd) -> str:
        """What waits under this name, or what the job's ad says.

        Raises:
            Refused: neither.
        """
        wanted = checked_attribute(name).lower()
        for known, expression in self._waiting.items():
            if known.lower() == wanted:
                return expression
        if name not in job_ad:
            raise Refused(Code.DOESNT_EXIST)
        return str(job_ad.lookup(name))

    def pending(self) -> dict[str, str]:
        """What is to go out with the next update."""
        return dict(self._waiting)

    def sent(self, pending: Mapping[str, str]) -> None:
        """These went out; what was set anew meanwhile goes out with the next."""
        self._waiting = {name: text for name, text in self._waiting.items() if pending.get(name) != text}


@lru_cache(maxsize=1024)
def _tokens(expression: str) -> int:
    """Of an attribute in an ad: its name, '=', an expression that was checked, ';'."""
    return from_old(expression, "an attribute").tokens + 3


def as_ad(pending: Mapping[str, str]) -> ClassAd:
    """Pending attributes as an ad; each was checked when it was set."""
    return parse_old("\n".join(f"{name} = {expression}" for name, expression in pending.items()))


def _literal(pattern: str) -> str:
    """Only ``*`` is special in HTCondor's lists."""
    return pattern.replace("[", "[[]").replace("?", "[?]")


def event(text: str) -> ClassAd:
    """A generic event for the user's log: one line, and nothing that could be taken for another event."""
    ad = ClassAd()
    ad["MyType"] = "GenericEvent"
    ad["EventTypeNumber"] = 8
    ad["Info"] = "".join(c if c.isprintable() else " " for c in text)[:EVENT_CHARACTERS]
    return ad


# --- the file that tells the job where we are ------------------------------------------------------------------------


def config_line(port: int, cookie: str) -> bytes:
    """`.chirp.config`: host, port and cookie."""
    return f"127.0.0.1 {port} {cookie}\n".encode()
