"""Pool accounts: leases in a gridmapdir, in the on-disk form that LCMAPS has.

One empty file per account; a lease is a hard link to it, named by the DN: letters and digits in lower
case, every other byte as % and two digits; `:group:group` behind it for the VOMS kind. Lower-casing
makes different DNs share one name: then LCMAPS gives both persons one account. So beside the
lease a note is kept (`.ACCOUNT.dn`, which LCMAPS passes over) of the DN that it was made for, and
another DN with the same lease is refused, whoever made the lease.
"""

import errno
import os
import stat
from contextlib import suppress

from glexec.codes import DENIED, INTERNAL, Failure, reason

_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789")
_NOTE = ".%s.dn"
_LIMIT_NOTE_BYTES = 16 << 10
_FREE, _LEASED = 1, 2  # links of an account's file
_TRIES = 5  # another node may take the same account meanwhile


class Refused(Failure):
    """No lease; `details` are for the site's log."""

    def __init__(self, code: int, details: str) -> None:
        text = "denied: the site's policy does not map this credential"
        super().__init__(code, text if code == DENIED else "gridmapdir: " + details)
        self.details = details


def lease_name(dn: str, groups: "list[str]") -> str:
    """The file name of a DN's lease. Pure."""
    parts = []
    for byte in dn.encode("utf-8", "surrogateescape"):
        lower = byte + 32 if 0x41 <= byte <= 0x5A else byte
        parts.append(chr(lower) if lower in _PLAIN else "%%%02x" % byte)
    return ":".join(["".join(parts), *groups])


def is_of_pool(account: str, prefix: str, strict: bool) -> bool:
    """Does an account belong to the pool? `prefix` and something behind it; strict: digits. Pure."""
    rest = account[len(prefix) :]
    if not account.startswith(prefix) or not rest or account == "root":
        return False
    return not strict or not rest.strip("0123456789")


def lease(directory: str, dn: str, groups: "list[str]", prefix: str, *, strict: bool, override: bool) -> str:
    """The account that the DN has, or gets now, from the pool; Refused (203: none is free, or not the pool's)."""
    name = lease_name(dn, groups)
    try:
        place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for _ in range(_TRIES):
                account = _held(place, name) or _claimed(place, name, prefix, strict)
                if account is not None:
                    break
            else:
                raise Refused(INTERNAL, "other nodes take every account that this one tries")
            if not is_of_pool(account, prefix, strict) and not override:
                raise Refused(DENIED, "the lease is of account %s, not of pool %s" % (account, prefix))
            os.utime(account, dir_fd=place)  # whoever cleans up goes by it
            _require_owner(place, account, name, dn)
            return account
        finally:
            os.close(place)
    except OSError as error:
        raise Refused(INTERNAL, "%s: %s" % (directory, reason(error))) from None


def _held(place: int, name: str) -> "str | None":
    """The account of a lease that stands; an orphan (its account's file was removed) is removed."""
    try:
        found = os.stat(name, dir_fd=place, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > _LEASED:
        raise Refused(INTERNAL, "the lease is not a file with two links: " + name)
    if found.st_nlink < _LEASED:
        os.unlink(name, dir_fd=place)
        return None
    account = _account_of(place, found.st_ino)
    if account is None:
        raise Refused(INTERNAL, "the lease belongs to no account: " + name)
    return account


def _accounts(place: int) -> "list[str]":
    return [name for name in os.listdir(place) if name[0] not in "%." and "~" not in name and ":" not in name]


def _account_of(place: int, inode: int) -> "str | None":
    for account in _accounts(place):
        try:
            if os.stat(account, dir_fd=place, follow_symlinks=False).st_ino == inode:
                return account
        except FileNotFoundError:
            continue  # taken away meanwhile
    return None


def _claimed(place: int, name: str, prefix: str, strict: bool) -> "str | None":
    """A free account, taken by a link; None if somebody else was faster."""
    for account in _accounts(place):
        if not is_of_pool(account, prefix, strict):
            continue
        found = os.stat(account, dir_fd=place, follow_symlinks=False)
        if found.st_nlink != _FREE or not stat.S_ISREG(found.st_mode):
            continue
        try:
            os.link(account, name, src_dir_fd=place, dst_dir_fd=place, follow_symlinks=False)
        except FileExistsError:
            return None  # the same person, from another node
        if os.stat(account, dir_fd=place).st_nlink > _LEASED:
            os.unlink(name, dir_fd=place)  # another person took it in the same moment
            continue
        return account
    raise Refused(DENIED, "no account of pool %s is free" % prefix)


def require_owner(directory: str, lease: str, dn: str) -> None:
    """Note whose lease it is, or refuse (203) if it is another DN's. For leases that LCMAPS made."""
    try:
        place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                inode = os.stat(lease, dir_fd=place, follow_symlinks=False).st_ino
            except FileNotFoundError:
                return  # the lease is in another directory of the policy
            account = _account_of(place, inode)
            if account is None:
                raise Refused(INTERNAL, "the lease belongs to no account: " + lease)
            _require_owner(place, account, lease, dn)
        finally:
            os.close(place)
    except OSError as error:
        raise Refused(INTERNAL, "%s: %s" % (directory, reason(error))) from None


def _require_owner(place: int, account: str, lease: str, dn: str) -> None:
    wanted = "%s\n%s\n" % (lease, dn)
    note = _NOTE % account
    found = _read_note(place, note)
    if found == wanted:
        return
    if found is not None and found.partition("\n")[0] == lease:
        raise Refused(
            DENIED,
            "the lease of %s is of another DN, different in case only: %s (remove %s and the lease if that has gone)"
            % (account, found.partition("\n")[2].strip(), note),
        )
    temporary = ".%s.%s" % (account, os.urandom(8).hex())
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(temporary, flags, 0o644, dir_fd=place), "w", encoding="utf-8") as stream:
        stream.write(wanted)
    if found is not None:
        _take_away(place, note, found)
    try:  # two persons at once: the first note stands, and the second one meets it
        os.link(temporary, note, src_dir_fd=place, dst_dir_fd=place)
    except FileExistsError:
        pass
    finally:
        os.unlink(temporary, dir_fd=place)
    if _read_note(place, note) != wanted:
        raise Refused(DENIED, "the lease of %s was just made for another DN" % account)


def _take_away(place: int, note: str, expected: str) -> None:
    """The note of a lease that is over. Another one, which somebody has made meanwhile, comes back."""
    taken = "%s.%s" % (note, os.urandom(8).hex())
    try:
        os.rename(note, taken, src_dir_fd=place, dst_dir_fd=place)
        if _read_note(place, taken) != expected:
            os.link(taken, note, src_dir_fd=place, dst_dir_fd=place)
    except (FileNotFoundError, FileExistsError):
        pass  # others do the same
    with suppress(FileNotFoundError):
        os.unlink(taken, dir_fd=place)


def _read_note(place: int, note: str) -> "str | None":
    try:
        file = os.open(note, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=place)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    with open(file, "rb") as stream:
        return stream.read(_LIMIT_NOTE_BYTES).decode("utf-8", "replace")
