"""Who is who, and acting as somebody: borrowed for file access, or for good before a payload.

Every change is verified. A process whose identity is not what it should be ends at once.
"""

import os
import pwd

from glexec.codes import DENIED, INTERNAL, Failure


class Account:
    """A local account with the numbers that the kernel will be given."""

    def __init__(self, name: str, uid: int, gid: int, groups: "list[int]", home: str) -> None:
        self.name = name
        self.uid = uid
        self.gid = gid
        self.groups = groups
        self.home = home


def caller(environ: "dict[str, str]") -> Account:
    """The account that called sudo, by the uid that sudo recorded."""
    number = environ.get("SUDO_UID", "")
    if not number.isdecimal():
        raise Failure(INTERNAL, "not started by sudo")
    try:
        entry = pwd.getpwuid(int(number))
    except (KeyError, OverflowError):
        raise Failure(DENIED, "denied: uid %s has no account here" % number[:20]) from None
    groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, groups, entry.pw_dir)


def is_listed(who: Account, listed: "list[str]") -> bool:
    """Is the account on the white list, by name or through a `.group`?"""
    if who.name in listed:
        return True
    wanted = [item[1:] for item in listed if item.startswith(".")]
    if not wanted:
        return False
    import grp

    for name in wanted:
        try:
            if grp.getgrnam(name).gr_gid in who.groups:
                return True
        except KeyError:
            continue  # a group that this node does not have lists nobody
    return False


def target(uid: int, gids: "list[int]", secondary: "list[int]") -> Account:
    """The account of a mapping. Root, and groups of root, are never a target."""
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        raise Failure(INTERNAL, "the mapping names uid %d, which has no account here" % uid) from None
    gid = gids[0] if gids else entry.pw_gid
    groups = sorted({gid, *gids, *secondary})  # a mapping without groups: the account's own, alone
    if uid == 0 or 0 in groups:
        raise Failure(INTERNAL, "the mapping names root; refused")
    return Account(entry.pw_name, uid, gid, groups, entry.pw_dir or "/")


class Borrowed:
    """`with Borrowed(account):` file access with its rights; real and saved ids stay root's.

    Nobody else can signal or trace the process meanwhile: both need the real or saved uid.
    """

    def __init__(self, account: Account) -> None:
        self._account = account
        self._groups = os.getgroups()

    def __enter__(self) -> None:
        os.setgroups(self._account.groups)
        os.setegid(self._account.gid)
        os.seteuid(self._account.uid)
        self._verify(self._account.uid, self._account.gid, self._account.groups)

    def __exit__(self, *_: object) -> None:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(self._groups)
        self._verify(0, 0, self._groups)

    def _verify(self, uid: int, gid: int, groups: "list[int]") -> None:
        if os.geteuid() != uid or os.getegid() != gid or set(os.getgroups()) - {gid} != set(groups) - {gid}:
            os._exit(INTERNAL)


def become(account: Account) -> None:
    """Become the account for good; the process ends if any id is not what it should be.

    From here to execve the process is not dumpable (the kernel clears that on a change of uid),
    so that other processes of the account cannot read what root's memory still holds.
    """
    os.setgroups(account.groups)
    os.setresgid(account.gid, account.gid, account.gid)
    os.setresuid(account.uid, account.uid, account.uid)
    _require_for_good(account)


def _require_for_good(account: Account) -> None:
    uids, gids = os.getresuid(), os.getresgid()
    if uids != (account.uid,) * 3 or gids != (account.gid,) * 3:
        os._exit(INTERNAL)
    if set(os.getgroups()) - {account.gid} != set(account.groups) - {account.gid}:
        os._exit(INTERNAL)
    try:
        os.setuid(0)
    except PermissionError:
        return
    os._exit(INTERNAL)
