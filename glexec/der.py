"""Just enough DER to find a certificate's extensions and to read a VOMS attribute certificate.

libcrypto checks signatures and chains; it has no reader for attribute certificates before 3.4, and
its structures differ between versions, so these few fields are read here. Everything comes from a
user: every length and every count has a limit, and what does not fit is Bad.
"""

INTEGER, BIT_STRING, OCTETS, OID, UTC, GENERALIZED, SEQUENCE, SET = 0x02, 0x03, 0x04, 0x06, 0x17, 0x18, 0x30, 0x31
BOOLEAN = 0x01
_LIMIT_CHILDREN = 512  # a user with hundreds of groups is still below
_EXTENSIONS = 0xA3
_VERSION = 0xA0


class Bad(Exception):
    """Not DER, or not what is expected here."""


class Node:
    """One value: its tag, its content, and itself as encoded."""

    def __init__(self, tag: int, body: bytes, raw: bytes) -> None:
        self.tag = tag
        self.body = body
        self.raw = raw

    def expect(self, tag: int) -> bytes:
        if self.tag != tag:
            raise Bad("tag %d instead of %d" % (self.tag, tag))
        return self.body

    def children(self) -> "list[Node]":
        """The values inside a constructed one."""
        if not self.tag & 0x20:
            raise Bad("tag %d has nothing inside" % self.tag)
        return nodes(self.body)

    def child(self, number: int) -> "Node":
        """One of the values inside; Bad if there are not so many."""
        inside = self.children()
        if number >= len(inside):
            raise Bad("%d values instead of %d or more" % (len(inside), number + 1))
        return inside[number]


def nodes(data: bytes) -> "list[Node]":
    """The values that `data` consists of, without a rest."""
    found, start = [], 0  # type: tuple[list[Node], int]
    while start < len(data):
        if len(found) == _LIMIT_CHILDREN:
            raise Bad("too many values")
        tag, begin, end = _head(data, start)
        found.append(Node(tag, data[begin:end], data[start:end]))
        start = end
    return found


def one(data: bytes) -> Node:
    """The single value that `data` is."""
    found = nodes(data)
    if len(found) != 1:
        raise Bad("not one value")
    return found[0]


def _head(data: bytes, start: int) -> "tuple[int, int, int]":
    """Tag, start and end of the content."""
    if start + 2 > len(data):
        raise Bad("cut short")
    tag, length, begin = data[start], data[start + 1], start + 2
    if tag & 0x1F == 0x1F:
        raise Bad("a long tag")
    if length & 0x80:
        count = length & 0x7F
        if not 1 <= count <= 4 or begin + count > len(data):
            raise Bad("a length of a kind that DER does not have")
        length = int.from_bytes(data[begin : begin + count], "big")
        begin += count
    if begin + length > len(data):
        raise Bad("cut short")
    return tag, begin, begin + length


class Certificate:
    """The fields of an X.509 certificate that are compared or looked into; names as encoded."""

    def __init__(self, raw: bytes) -> None:
        fields = one(raw).child(0).children()
        if fields and fields[0].tag == _VERSION:
            fields = fields[1:]
        if len(fields) < 6:
            raise Bad("not a certificate")
        self.serial = fields[0].expect(INTEGER)
        self.issuer = fields[2].raw
        self.subject = fields[4].raw
        self.extensions = {}  # type: dict[bytes, bytes]
        for field in fields[6:]:
            if field.tag == _EXTENSIONS:
                self.extensions = {oid: value for oid, _, value in extensions(field.child(0))}


def extensions(sequence: Node) -> "list[tuple[bytes, bool, bytes]]":
    """Object identifier, criticality and content of each; a second one of a kind is Bad (RFC 5280, 4.2)."""
    found = []  # type: list[tuple[bytes, bool, bytes]]
    for extension in sequence.children():
        parts = extension.children()
        if not 2 <= len(parts) <= 3:
            raise Bad("not an extension")
        critical = len(parts) == 3 and parts[1].expect(BOOLEAN) != b"\0"
        found.append((parts[0].expect(OID), critical, parts[-1].expect(OCTETS)))
    if len({oid for oid, _, _ in found}) != len(found):
        raise Bad("an extension twice")
    return found
