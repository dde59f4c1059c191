"""Typed local messages as bytes: what `pilot.rpc` carries between our own processes.

Pure: frozen attrs classes in, bytes out, and back. A frame is a u32 length (big endian) and a msgpack body
`[tag, {field: value}]`; the tag is the class name. Everything that is read is checked against the class's
annotations and nothing is coerced: a string is never a number, an integer never a boolean.

It does no I/O, and it does not version messages: both ends are of one installation.
"""

import math
import struct
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import attrs
import cattrs
import msgpack  # type: ignore[import-untyped, unused-ignore]
from cattrs.gen import make_dict_structure_fn

HEADER = struct.Struct("!I")
# One array or map may claim at most this many entries: msgpack allocates what a header claims before it has
# seen the entries, and nested headers multiply. The longest real list is a family's pids; 65,536 is above
# every NPROC limit seen on worker nodes.
MAX_ENTRIES = 65_536


class RpcFault(Exception):
    """The other end broke the protocol or went away: its connection is closed and stays closed.

    `code` is a stable word: "closed", "truncated", "limit", "garbage", "tag", "type", "fds".
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text


class ChannelClosed(RpcFault):
    """The other end is gone (end of file, reset), or this end was closed."""

    def __init__(self, text: str = "the other end closed the connection") -> None:
        super().__init__("closed", text)


class RpcRefused(Exception):
    """The other end answered `Error`: the request changed nothing and the connection lives on."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text


@attrs.frozen
class Error:
    """The reply that means no. Part of every protocol."""

    code: str
    text: str


class _Mismatch(ValueError):
    """A value is not what its annotation says. The text never contains the value: it may be a secret."""


# What msgpack, cattrs, attrs validators and enums raise on hostile input. RecursionError and MemoryError:
# depth and claimed sizes are the sender's choice.
_DECODE_ERRORS = (
    ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError, MemoryError,
    msgpack.UnpackException, cattrs.BaseValidationError, cattrs.ForbiddenExtraKeysError,
)  # fmt: skip


class Protocol:
    """A closed set of message classes and their encoding.

    Args:
        message_types: frozen attrs classes with distinct names. Fields may be annotated with int, float,
            bool, str, bytes, Path, None, Any, Literal, enums, other attrs classes, unions of these, and
            tuple, list, frozenset, dict and Mapping of these. `Error` is always included.
    """

    def __init__(self, *message_types: type) -> None:
        self._converter = _make_converter()
        self._types: dict[str, type] = {}
        for cls in (Error, *message_types):
            if self._types.setdefault(cls.__name__, cls) is not cls:
                raise TypeError(f"two message classes are called {cls.__name__}")

    def prepare(self) -> None:
        """Do at once what is otherwise done at the first message of each class (about 0.5 ms): for processes that
        fork others."""
        classes = _with_nested(self._types.values())
        fields = [field.type for cls in classes for field in attrs.fields(cls)]
        for _ in range(2):  # making one hook, the converter forgets others that it had found
            for kind in dict.fromkeys([*classes, *filter(None, fields)]):
                self._converter.get_structure_hook(kind)
                self._converter.get_unstructure_hook(kind)

    def encode(self, message: Any) -> bytes:
        """The body of a message (no length in front).

        Raises:
            TypeError: not a message of this protocol, or a field that msgpack does not know (our bug).
            ValueError, OverflowError: a value outside what msgpack holds (64-bit integers, 4 GiB).
        """
        cls = type(message)
        if self._types.get(cls.__name__) is not cls:
            raise TypeError(f"{cls.__name__} is no message of this protocol")
        fields = self._converter.unstructure(message, cls)
        return bytes(msgpack.packb([cls.__name__, fields], unicode_errors="surrogateescape"))

    def decode(self, body: bytes) -> Any:
        """The message in a body; RpcFault on anything malformed, and on nothing else."""
        tag, fields = _split(_unpack(body))
        cls = self._types.get(tag)
        if cls is None:
            raise RpcFault("tag", "unknown message")
        try:
            return self._converter.structure(fields, cls)
        except _DECODE_ERRORS as error:
            raise RpcFault("type", f"{tag}: {_describe(error)}") from None


def _unpack(body: bytes) -> Any:
    entries = min(len(body), MAX_ENTRIES)
    try:
        return msgpack.unpackb(
            body,
            unicode_errors="surrogateescape",
            ext_hook=_refuse_extension,
            max_array_len=entries,
            max_map_len=entries,
        )
    except _DECODE_ERRORS:
        raise RpcFault("garbage", "not one msgpack value within the limits") from None


def _refuse_extension(code: int, data: bytes) -> Any:
    raise _Mismatch("no extension types here")


def _split(value: Any) -> tuple[str, Any]:
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[0], str):
        raise RpcFault("garbage", "not a tag and its fields")
    return value[0], value[1]


def _describe(error: BaseException) -> str:
    """Words about a refused message, free of the message's values."""
    return str(error) if isinstance(error, _Mismatch) else type(error).__name__


def _with_nested(classes: Iterable[type]) -> list[type]:
    """These, and the classes that their fields are made of."""
    found: dict[type, None] = {}
    waiting: list[Any] = list(classes)
    while waiting:
        kind = waiting.pop()
        waiting += get_args(kind)
        if isinstance(kind, type) and attrs.has(kind) and kind not in found:
            found[kind] = None
            waiting += [field.type for field in attrs.fields(attrs.resolve_types(kind))]
    return list(found)


# --- cattrs: strict hooks -----------------------------------------------------------------------------------

_Hook = Callable[[Any, Any], Any]


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter(detailed_validation=False)
    for kind in (int, str, bytes, bool):
        converter.register_structure_hook(kind, _exactly(kind))
    converter.register_structure_hook(float, _real)
    converter.register_structure_hook(Path, lambda value, _: Path(_exactly(str)(value, str)))
    converter.register_unstructure_hook(Path, str)
    converter.register_structure_hook_factory(attrs.has, lambda cls: _fields_hook(converter, cls))
    converter.register_structure_hook_factory(_is_literal, _literal_hook)
    converter.register_structure_hook_factory(_is_sequence, lambda kind: _sequence_hook(converter, kind))
    converter.register_unstructure_hook_factory(_is_sequence, lambda kind: _sequence_out(converter, kind))
    converter.register_structure_hook_factory(_is_mapping, lambda kind: _mapping_hook(converter, kind))
    converter.register_structure_hook_factory(_is_union, lambda kind: _union_hook(converter, kind))
    converter.register_unstructure_hook_factory(_is_union, lambda kind: _union_out(converter, kind))
    return converter


def _exactly(kind: type) -> _Hook:
    def structure(value: Any, _: Any) -> Any:
        if type(value) is not kind:
            raise _Mismatch(f"{kind.__name__} expected")
        return value

    return structure


def _real(value: Any, _: Any) -> float:
    if type(value) not in (int, float) or math.isnan(value):
        raise _Mismatch("number expected")
    return float(value)


def _fields_hook(converter: cattrs.Converter, cls: type) -> _Hook:
    attrs.resolve_types(cls)
    inner: _Hook = make_dict_structure_fn(
        cls, converter, _cattrs_forbid_extra_keys=True, _cattrs_detailed_validation=False
    )

    def structure(value: Any, kind: Any) -> Any:
        if type(value) is not dict:
            raise _Mismatch(f"fields of {cls.__name__} expected")
        return inner(value, kind)

    return structure


def _is_literal(kind: Any) -> bool:
    return get_origin(kind) is Literal


def _literal_hook(kind: Any) -> _Hook:
    allowed = get_args(kind)

    def structure(value: Any, _: Any) -> Any:
        if not any(type(value) is type(each) and value == each for each in allowed):
            raise _Mismatch("none of the allowed values")
        return value

    return structure


def _is_sequence(kind: Any) -> bool:
    return get_origin(kind) in (tuple, list, frozenset, set, Sequence, AbstractSet)


def _element_types(kind: Any, count: int) -> Sequence[Any]:
    arguments = get_args(kind)
    if get_origin(kind) is not tuple or arguments[-1] is Ellipsis:
        return (arguments[0],) * count
    if len(arguments) != count:
        raise _Mismatch(f"{len(arguments)} values expected")
    return arguments


def _sequence_hook(converter: cattrs.Converter, kind: Any) -> _Hook:
    origin = get_origin(kind)
    build = {list: list, frozenset: frozenset, set: set, AbstractSet: frozenset}.get(origin, tuple)

    def structure(value: Any, _: Any) -> Any:
        if type(value) is not list:
            raise _Mismatch("list expected")
        pairs = zip(value, _element_types(kind, len(value)), strict=True)
        return build(converter.structure(element, each) for element, each in pairs)

    return structure


def _sequence_out(converter: cattrs.Converter, kind: Any) -> Callable[[Any], Any]:
    def unstructure(value: Any) -> Any:
        pairs = zip(value, _element_types(kind, len(value)), strict=True)
        return [converter.unstructure(element, each) for element, each in pairs]

    return unstructure


def _is_mapping(kind: Any) -> bool:
    return get_origin(kind) in (dict, Mapping)


def _mapping_hook(converter: cattrs.Converter, kind: Any) -> _Hook:
    key_type, value_type = get_args(kind)

    def structure(value: Any, _: Any) -> Any:
        if type(value) is not dict:
            raise _Mismatch("map expected")
        return {
            converter.structure(key, key_type): converter.structure(entry, value_type) for key, entry in value.items()
        }

    return structure


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)


def _union_hook(converter: cattrs.Converter, kind: Any) -> _Hook:
    """None as nil, attrs members as [class name, fields], anything else by the first member that fits."""
    members = [member for member in get_args(kind) if member is not type(None)]
    classes = {member.__name__: member for member in members if attrs.has(member)}
    others = [member for member in members if not attrs.has(member)]
    optional = len(members) < len(get_args(kind))

    def structure(value: Any, _: Any) -> Any:
        if value is None and optional:
            return None
        if classes and type(value) is list and len(value) == 2 and type(value[0]) is str and value[0] in classes:
            return converter.structure(value[1], classes[value[0]])
        for member in others:
            try:
                return converter.structure(value, member)
            except _DECODE_ERRORS:
                continue
        raise _Mismatch("none of the allowed types")

    return structure


def _union_out(converter: cattrs.Converter, kind: Any) -> Callable[[Any], Any]:
    members = [member for member in get_args(kind) if member is not type(None)]
    single = members[0] if len(members) == 1 else None

    def unstructure(value: Any) -> Any:
        if value is None:
            return None
        if attrs.has(type(value)):
            return [type(value).__name__, converter.unstructure(value, type(value))]
        return converter.unstructure(value, single) if single is not None else converter.unstructure(value)

    return unstructure


# --- frames -------------------------------------------------------------------------------------------------


class FrameBuffer:
    """Puts a frame together from whatever pieces arrive; keeps its state when its reader is interrupted.

    It asks for exactly the bytes of the frame at hand (`missing`), so descriptors that arrive with these
    bytes belong to this frame.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._data = bytearray()
        self._length: int | None = None

    @property
    def missing(self) -> int:
        """Bytes still wanted before anything new is known; 0 when `take` has a body."""
        if self._length is None:
            return HEADER.size - len(self._data)
        return self._length - len(self._data)

    @property
    def begun(self) -> bool:
        """True when a part of a frame has been read: an end of file now is a cut message."""
        return self._length is not None or bool(self._data)

    def feed(self, piece: bytes) -> None:
        """Add at most `missing` bytes. RpcFault("limit") for a length above the limit, before any of it is
        read."""
        self._data += piece
        if self._length is None and len(self._data) == HEADER.size:
            (length,) = HEADER.unpack(self._data)
            if length > self._limit_bytes:
                raise RpcFault("limit", f"a message of {length} bytes, allowed are {self._limit_bytes}")
            self._length = length
            self._data.clear()

    def take(self) -> bytes | None:
        """The finished body, or None when bytes are missing."""
        if self._length is None or self.missing:
            return None
        body = bytes(self._data)
        self._data.clear()
        self._length = None
        return body


def frame(body: bytes, limit_bytes: int) -> bytes:
    """Body with its length in front. RpcFault("limit") when the other end would refuse it."""
    if len(body) > limit_bytes:
        raise RpcFault("limit", f"a message of {len(body)} bytes, allowed are {limit_bytes}; nothing was sent")
    return HEADER.pack(len(body)) + body
