"""The site's LCMAPS by ctypes. Runs in the deciding child only, because a bad policy makes it abort its process."""

import ctypes
import os

from glexec.codes import DENIED, INTERNAL, Failure


def load() -> "tuple[object, object]":
    """The library and its simplest front; OSError where it is not installed."""
    core = ctypes.CDLL("liblcmaps.so.0", mode=ctypes.RTLD_GLOBAL)
    return core, ctypes.CDLL("liblcmaps_return_account_from_pem.so.0")


def file_with(text: str) -> str:
    """A path under which the library finds this policy: it reads files only."""
    file = ctypes.CDLL(None).memfd_create(b"lcmaps.db", 0)  # os.memfd_create: Python 3.8
    data = text.encode("utf-8", "surrogateescape")
    if file < 0 or os.write(file, data) != len(data):
        raise Failure(INTERNAL, "no memory file for the policy")
    return "/proc/self/fd/%d" % file


def mapped(library: "tuple[object, object]", pem: bytes) -> "tuple[int, list[int], list[int], str]":
    """One call of lcmaps_return_account_from_pem, which opens and closes the library itself.

    Gives uid, gids, secondary gids, lease. Lists that this call returns are ours to clean; those of
    lcmaps_run_* would not be.
    """

    class AccountInfo(ctypes.Structure):  # lcmaps_account.h
        _fields_ = [
            ("uid", ctypes.c_uint),
            ("pgid_list", ctypes.POINTER(ctypes.c_uint)),
            ("npgid", ctypes.c_int),
            ("sgid_list", ctypes.POINTER(ctypes.c_uint)),
            ("nsgid", ctypes.c_int),
            ("poolindex", ctypes.c_char_p),
        ]

    core, front = library
    assert isinstance(core, ctypes.CDLL)
    assert isinstance(front, ctypes.CDLL)
    account = AccountInfo()
    core.lcmaps_account_info_init(ctypes.byref(account))
    if front.lcmaps_return_account_from_pem(ctypes.c_char_p(pem), ctypes.c_int(-1), ctypes.byref(account)):
        raise Failure(DENIED, "denied: the site's policy does not map this credential")
    gids = list(account.pgid_list[: account.npgid])
    secondary = list(account.sgid_list[: account.nsgid])
    uid, lease = account.uid, account.poolindex or b""
    core.lcmaps_account_info_clean(ctypes.byref(account))
    return uid, gids, secondary, lease.decode("ascii", "replace")
