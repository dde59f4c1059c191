"""What a PEM holds, asked of libcrypto by ctypes: usable now? whose?

Runs in the deciding child only. Says what a caller can fix (no key, wrong key, expired, no chain); whether
its CA is to be believed is the policy's question, not asked here. Nothing is ever freed: the process
ends after one credential.
"""

import ctypes
import os

from glexec.codes import CLIENT, INTERNAL, Failure

TYPE_CHECKING = False  # the typing module costs milliseconds
if TYPE_CHECKING:
    from collections.abc import Mapping

_MAX_CERTIFICATES = 32  # a proxy of a proxy of a proxy with its authorities stays below ten
IS_PROXY = 0x0400  # EXFLAG_PROXY, openssl/x509v3.h
_DRAFT = bytes.fromhex("060a2b060104019b5001815e")  # 1.3.6.1.4.1.3536.1.222, as it stands in GT3's proxies
_LEGACY_PROXY = ("/CN=proxy", "/CN=limited proxy")  # before RFC 3820 (GT2)
_NAME_BYTES = 4096
_BEGIN, _IGNORED = b"-----BEGIN ", b"EC PARAMETERS-----"  # `openssl ecparam -genkey` writes the latter before a key
# Where no mapping library has brought one along. 1.0.2 (EL7) lacks too much of what is asked for.
_NAMES = ("libcrypto.so.3", "libcrypto.so.1.1", "libcrypto.so")

_P, _I = ctypes.c_void_p, ctypes.c_int
_POINTERS = {
    "BIO_new_mem_buf": (ctypes.c_char_p, _I),
    "PEM_read_bio_X509": (_P,) * 4,
    "PEM_read_bio_PrivateKey": (_P, _P, _P, ctypes.c_char_p),
    "X509_get_subject_name": (_P,),
    "X509_get_issuer_name": (_P,),
    "X509_NAME_oneline": (_P, ctypes.c_char_p, _I),
    "X509_get0_notBefore": (_P,),
    "X509_get0_notAfter": (_P,),
    "X509_get0_pubkey": (_P,),
}
_NUMBERS = {
    "X509_cmp_current_time": (_P,),
    "X509_check_private_key": (_P, _P),
    "X509_get_extension_flags": (_P,),
    "X509_NAME_cmp": (_P, _P),
    "X509_verify": (_P, _P),
    "i2d_X509": (_P, _P),
}


def libcrypto() -> ctypes.CDLL:
    """The one that the mapping library has brought along (two of them in one process would clash), or the system's."""
    library = _loaded() or _found()
    declare(library, _POINTERS, _P)
    declare(library, _NUMBERS, _I)
    return library


def declare(library: ctypes.CDLL, functions: "Mapping[str, tuple[object, ...]]", result: object) -> None:
    """Say what the functions take and give."""
    for name, arguments in functions.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, result


def _loaded() -> "ctypes.CDLL | None":
    for name in _NAMES:
        try:
            return ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_NOW)  # costs nothing; the next way 0.3 ms
        except OSError:
            continue
    with open("/proc/self/maps") as maps:
        for line in maps:
            path = line.rstrip("\n").partition("/")[2]
            if path.rpartition("/")[2].startswith("libcrypto.so"):
                return ctypes.CDLL("/" + path)
    return None


def _found() -> ctypes.CDLL:
    for name in _NAMES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise Failure(INTERNAL, "no libcrypto (1.1 or 3)")


class Credential:
    """A credential that its holder can use now. `chain` are libcrypto's certificates, the leaf first."""

    def __init__(self, crypto: ctypes.CDLL, chain: "list[int]") -> None:
        self.crypto = crypto
        self.chain = chain
        self._encoded = {}  # type: dict[int, bytes]
        self.names = [oneline(crypto, crypto.X509_get_subject_name(one)) for one in chain]

    @property
    def owner(self) -> int:
        """Index of the first certificate that is not a proxy: the end entity's."""
        for number, name in enumerate(self.names):
            if not self.is_proxy(number) and not name.endswith(_LEGACY_PROXY):
                return number
        return len(self.chain) - 1

    @property
    def dn(self) -> str:
        """The DN of the person behind the credential."""
        return self.names[self.owner]

    def is_proxy(self, number: int) -> bool:
        """A proxy of RFC 3820 or of its draft, by its extension."""
        flags = self.crypto.X509_get_extension_flags(self.chain[number])
        return bool(flags & IS_PROXY) or _DRAFT in self.der(number)

    def der(self, number: int) -> bytes:
        """A certificate as encoded."""
        if number not in self._encoded:
            self._encoded[number] = encoded(self.crypto, self.chain[number])
        return self._encoded[number]


def read(pem: bytes) -> Credential:
    """The credential in a PEM; Failure(201) if it cannot be used as it is."""
    crypto = libcrypto()
    chain = certificates(crypto, pem)
    key = crypto.PEM_read_bio_PrivateKey(crypto.BIO_new_mem_buf(pem, len(pem)), None, None, b"")
    if not key:
        raise Failure(CLIENT, "the credential holds no private key")
    if crypto.X509_check_private_key(chain[0], key) != 1:
        raise Failure(CLIENT, "the credential's private key does not belong to its certificate")
    for certificate in chain:
        if crypto.X509_cmp_current_time(crypto.X509_get0_notAfter(certificate)) <= 0:
            raise Failure(CLIENT, "the credential has expired")
        if crypto.X509_cmp_current_time(crypto.X509_get0_notBefore(certificate)) > 0:
            raise Failure(CLIENT, "the credential is not valid yet; is the clock right where it was made, and here?")
    # All of it was read here: another reader, who goes on behind a damaged part, must not find more.
    if pem.count(_BEGIN) - pem.count(_BEGIN + _IGNORED) != len(chain) + 1:
        raise Failure(CLIENT, "the credential holds a damaged part, or more than certificates and one key")
    _require_one_chain(crypto, chain)
    return Credential(crypto, chain)


def _require_one_chain(crypto: ctypes.CDLL, chain: "list[int]") -> None:
    """Each certificate signed by the next one's key. Anybody else's between them, which is no secret, would lend its
    name: whoever verifies picks the certificates that he needs, and whoever reads the DN counts them in their order."""
    for number, one in enumerate(chain[:-1], 1):
        above = chain[number]
        is_named = crypto.X509_NAME_cmp(crypto.X509_get_issuer_name(one), crypto.X509_get_subject_name(above)) == 0
        if not is_named or crypto.X509_verify(one, crypto.X509_get0_pubkey(above)) != 1:
            raise Failure(CLIENT, "the credential is no chain: certificate %d is not signed by the next one" % number)


def certificates(crypto: ctypes.CDLL, pem: bytes) -> "list[int]":
    """The certificates of a PEM in their order; Failure(201) for none or too many."""
    source = crypto.BIO_new_mem_buf(pem, len(pem))
    chain = []  # type: list[int]
    while len(chain) <= _MAX_CERTIFICATES:
        certificate = crypto.PEM_read_bio_X509(source, None, None, None)
        if not certificate:
            break
        chain.append(certificate)
    if not chain or len(chain) > _MAX_CERTIFICATES:
        text = "more certificates than a chain can have" if chain else "no certificate"
        raise Failure(CLIENT, "the credential holds " + text)
    return chain


def oneline(crypto: ctypes.CDLL, name: int) -> str:
    """A name in the slash form that grid-mapfiles are written in."""
    buffer = ctypes.create_string_buffer(_NAME_BYTES)
    crypto.X509_NAME_oneline(name, buffer, _NAME_BYTES)
    return buffer.value.decode("ascii", "backslashreplace")


def encoded(crypto: ctypes.CDLL, certificate: int) -> bytes:
    """A certificate's DER."""
    size = crypto.i2d_X509(certificate, None)
    if size <= 0:
        raise Failure(CLIENT, "the credential holds a certificate that cannot be encoded")
    buffer = ctypes.create_string_buffer(size)
    crypto.i2d_X509(certificate, ctypes.byref(ctypes.c_void_p(ctypes.addressof(buffer))))
    return buffer.raw
