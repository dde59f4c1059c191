"""Drives a security handshake over a stream: the acting side of `security`'s actions."""

from __future__ import annotations

import os
import pwd
import secrets
import stat
from typing import Any, TypeVar

import trio

from cedar.errors import PeerFault
from cedar.security import (
    Action,
    DirectoryOwner,
    Get,
    Handshake,
    MakeDirectory,
    PeerEndpoint,
    ProposeDirectory,
    Put,
    RemoveDirectory,
    UseKey,
)
from cedar.stream import CedarStream

T = TypeVar("T")

# Where stock servers look too; sticky, so that nobody can put another's directory there.
_FS_PARENT = "/tmp"
_PRIVATE_MODE = 0o700


async def run(stream: CedarStream, handshake: Handshake[T]) -> T:
    """The handshake's result. Raises what it raises; cancelling leaves the stream of no use."""
    try:
        action = next(handshake)
        while True:
            try:
                answer = await _perform(stream, action)
            except PeerFault as fault:
                action = handshake.throw(fault)
            else:
                action = handshake.send(answer)
    except StopIteration as stop:
        result: T = stop.value
        return result
    finally:
        _clean(handshake)


def _clean(handshake: Handshake[Any]) -> None:
    """End a handshake that was interrupted; it may want its directory removed."""
    try:
        action = handshake.throw(PeerFault("closed", "interrupted"))
        while True:
            if isinstance(action, RemoveDirectory):
                _remove_directory(action.path)
            action = handshake.throw(PeerFault("closed", "interrupted"))
    except Exception:  # how it ends no longer matters: the caller has its own exception, or the result
        return


async def _perform(stream: CedarStream, action: Action) -> Any:
    match action:
        case Put(items):
            await stream.put(*items)
        case Get():
            return await stream.get()
        case UseKey(key):
            stream.use_key(key)
        case MakeDirectory(path):
            return _make_directory(path)
        case RemoveDirectory(path):
            _remove_directory(path)
        case PeerEndpoint():
            return (*stream.endpoints()[1], stream.shared_port)
        case ProposeDirectory():
            host, port = stream.endpoints()[0]
            return f"{_FS_PARENT}/FS_{host}_{port}_{secrets.token_hex(12)}"
        case DirectoryOwner(path):
            return await _owner(path)
    return None


def _make_directory(path: str) -> bool:
    try:
        os.mkdir(path, _PRIVATE_MODE)
    except OSError:
        return False
    return True


def _remove_directory(path: str) -> None:
    try:
        os.rmdir(path)
    except OSError:  # somebody else's by now, or gone: nothing of ours is left
        return


async def _owner(path: str) -> str | None:
    """Name of the account that made a private directory; looked up in a thread, since that may block."""
    try:
        about = os.lstat(path)
    except OSError:
        return None
    if not stat.S_ISDIR(about.st_mode) or stat.S_IMODE(about.st_mode) != _PRIVATE_MODE or about.st_nlink > 2:
        return None
    return await trio.to_thread.run_sync(_account_name, about.st_uid)


def _account_name(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None
