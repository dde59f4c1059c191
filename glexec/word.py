"""One word shared by the front and the root part: the *offset* of an open file.

The front opens a file of its installation, and sudo hands the descriptor on; both sides then hold
the same open file description, so what one side seeks to, the other side reads. It is the only
two-way channel that a POSIX shell can make without a further process or a file in a directory
that others can write: a pipe needs its two ends in one shell. Nothing is ever read from the file.
The caller can change the word, and then deceives its own front only.

    bit 0      the front is ready to reap (set by the front, once)
    bit 1      the payload was started (set by the root part just before execve)
    bits 8-27  where the front sends signals to: kernel-given name of an abstract datagram socket
"""

import os

WATCHING = 1
STARTED = 2
_NAME_SHIFT = 8
_NAME_DIGITS = 5  # Linux gives autobound sockets names of five hexadecimal digits (unix(7))


def read(fd: int) -> int:
    """The word now."""
    return os.lseek(fd, 0, os.SEEK_CUR)


def add(fd: int, bits: int) -> None:
    """Set bits. Front and root part never write at the same time: the root part waits for bit 0."""
    os.lseek(fd, read(fd) | bits, os.SEEK_SET)


def drop(fd: int, bits: int) -> None:
    """Clear bits."""
    os.lseek(fd, read(fd) & ~bits, os.SEEK_SET)


def name_bits(name: bytes) -> int:
    """An autobound socket's name as bits of the word."""
    return int(name[1:], 16) << _NAME_SHIFT


def name_in(value: int) -> "bytes | None":
    """The socket's name in a word, if the root part gave one (it does when it lingers)."""
    number = value >> _NAME_SHIFT
    return b"\0%0*x" % (_NAME_DIGITS, number) if number else None
