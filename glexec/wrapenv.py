"""An environment through glexec in one variable: the tools glexec_wrapenv.pl and glexec_unwrapenv.pl.

    GLEXEC_ENV=$(glexec_wrapenv.pl) glexec .../glexec_unwrapenv.pl -- COMMAND [ARGUMENT...]

The format is that of the tools of this name, bit for bit: base64("NAME=VALUE") and a blank for each
variable, all of it deflated, and base64 again. Two of their quirks: a variable was lost when its name
was a part of an excluded one (not here), and a single argument with shell characters goes through /bin/sh (as
here: callers depend on it).
"""

import os
import sys

_EXCLUDED = ("HOME", "LOGNAME", "USER", "X509_USER_PROXY", "_")
_VARIABLE = b"GLEXEC_ENV"
# One string of the environment, NAME= and the final NUL included (MAX_ARG_STRLEN of Linux).
_LIMIT_BYTES = 128 << 10
_LIMIT_INFLATED = 32 << 20  # of a bomb no more than this is unpacked
_SHELL_CHARACTERS = frozenset("*?[]{}()<>|&;$`'\"\\~\n#=%!")
_NOT_FOUND, _NOT_EXECUTABLE = 127, 126  # as a shell has them


class Bad(Exception):
    """The text is not a wrapped environment, or does not fit."""


def wrap(environ: "dict[bytes, bytes]") -> bytes:
    """The environment as one value; Bad if it does not fit into a variable."""
    import binascii
    import zlib

    parts = [binascii.b2a_base64(name + b"=" + value, newline=False) + b" " for name, value in environ.items()]
    text = binascii.b2a_base64(zlib.compress(b"".join(parts)), newline=False)
    room = _LIMIT_BYTES - len(_VARIABLE) - len("=\0")
    if len(text) > room:
        raise Bad(
            "the environment is too large: %d bytes wrapped, %d fit; leave names out by --exclude" % (len(text), room)
        )
    return text


def unwrap(text: bytes) -> "dict[bytes, bytes]":
    """What was wrapped; Bad for anything else."""
    import binascii
    import zlib

    try:
        inflater = zlib.decompressobj()
        data = inflater.decompress(binascii.a2b_base64(text), _LIMIT_INFLATED)
        if not inflater.eof:
            raise Bad("it is cut short, or larger than %d bytes" % _LIMIT_INFLATED)
        pairs = [binascii.a2b_base64(part).partition(b"=") for part in data.split()]
    except (binascii.Error, zlib.error, ValueError):
        raise Bad("it is not a wrapped environment") from None
    if not all(name and equals and b"\0" not in name + value for name, equals, value in pairs):
        raise Bad("it is not a wrapped environment")
    return {name: value for name, _, value in pairs}


def _excluded(arguments: "list[str]") -> "tuple[set[bytes], list[str]]":
    """Names that are left out, and what follows the options."""
    names = {name.encode() for name in _EXCLUDED}
    while arguments and arguments[0].startswith("--"):
        option, equals, value = arguments.pop(0).partition("=")
        if option == "--" and not equals:
            break
        if option != "--exclude" or not equals:
            raise Bad("unknown option %s; there is only --exclude=NAME,NAME" % option[:40])
        names.update(os.fsencode(name) for name in value.split(",") if name)
    return names, arguments


def main_wrap() -> None:
    """glexec_wrapenv.pl"""
    try:
        names, rest = _excluded(sys.argv[1:])
        if rest:
            raise Bad("%s is no option; there is only --exclude=NAME,NAME" % rest[0][:40])
        kept = {}
        for name, value in os.environb.items():
            if name in names or name == _VARIABLE:
                os.write(2, b"Skipping %s\n" % name)
            else:
                kept[name] = value
        os.write(1, wrap(kept))
    except Bad as error:
        sys.exit("glexec_wrapenv.pl: %s" % error)


def main_unwrap() -> None:
    """glexec_unwrapenv.pl"""
    try:
        names, command = _excluded(sys.argv[1:])
        environ = {name: value for name, value in os.environb.items() if name != _VARIABLE}
        wrapped = unwrap(os.environb.get(_VARIABLE, b""))
        environ.update((name, value) for name, value in wrapped.items() if name not in names)
        if not command:
            raise Bad("no command to run in it was given")
    except Bad as error:
        sys.exit("glexec_unwrapenv.pl: %s: %s" % (_VARIABLE.decode(), error))
    if len(command) == 1:
        # As Perl's exec: one argument is a command line.
        through_shell = set(command[0]) & _SHELL_CHARACTERS
        command = ["/bin/sh", "-c", command[0]] if through_shell else command[0].split()
    try:
        os.execvpe(command[0], command, environ)
    except (OSError, ValueError, IndexError) as error:
        os.write(2, b"glexec_unwrapenv.pl: %s\n" % str(error).encode("utf-8", "replace"))
        sys.exit(_NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE)
