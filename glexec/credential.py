"""What a PEM holds, asked of libcrypto by ctypes: usable now? whose?

Runs in the mapping child only. Says what a caller can fix (no key, wrong key, expired); whether the
chain is to be believed is the policy's question, not asked here.
"""

import ctypes

from glexec.codes import CLIENT, INTERNAL, Failure

_MAX_CERTIFICATES = 32  # a proxy of a proxy of a proxy with its authorities stays below ten
_IS_PROXY = 0x0400  # EXFLAG_PROXY, openssl/x509v3.h
_LEGACY_PROXY = ("/CN=proxy", "/CN=limited proxy")  # before RFC 3820 (GT2)
_NAME_BYTES = 4096

_POINTERS = {
    "BIO_new_mem_buf": (ctypes.c_char_p, ctypes.c_int),
    "PEM_read_bio_X509": (ctypes.c_void_p,) * 4,
    "PEM_read_bio_PrivateKey": (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p),
    "X509_get_subject_name": (ctypes.c_void_p,),
    "X509_NAME_oneline": (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int),
    "X509_get0_notBefore": (ctypes.c_void_p,),
    "X509_get0_notAfter": (ctypes.c_void_p,),
}
_NUMBERS = {
    "X509_cmp_current_time": (ctypes.c_void_p,),
    "X509_check_private_key": (ctypes.c_void_p, ctypes.c_void_p),
    "X509_get_extension_flags": (ctypes.c_void_p,),
}


def _libcrypto() -> ctypes.CDLL:
    """The one that the mapping library has brought along; two of them in one process would clash."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            path = line.rstrip("\n").partition("/")[2]
            if path.rpartition("/")[2].startswith("libcrypto.so"):
                library = ctypes.CDLL("/" + path)
                break
        else:
            raise Failure(INTERNAL, "no libcrypto")
    for name, arguments in _POINTERS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, ctypes.c_void_p
    for name, arguments in _NUMBERS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, ctypes.c_int
    return library


def identity(pem: bytes) -> str:
    """The DN of the person behind the credential; Failure(201) if it cannot be used as it is.

    Nothing is freed: the process ends after one credential.
    """
    crypto = _libcrypto()
    chain = _certificates(crypto, pem)
    key = crypto.PEM_read_bio_PrivateKey(crypto.BIO_new_mem_buf(pem, len(pem)), None, None, b"")
    if not key:
        raise Failure(CLIENT, "the credential holds no private key")
    if crypto.X509_check_private_key(chain[0], key) != 1:
        raise Failure(CLIENT, "the credential's private key does not belong to its certificate")
    for certificate in chain:
        if crypto.X509_cmp_current_time(crypto.X509_get0_notAfter(certificate)) <= 0:
            raise Failure(CLIENT, "the credential has expired")
        if crypto.X509_cmp_current_time(crypto.X509_get0_notBefore(certificate)) > 0:
            raise Failure(CLIENT, "the credential is not valid yet")
    return _person(crypto, chain)


def _certificates(crypto: ctypes.CDLL, pem: bytes) -> "list[int]":
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


def _person(crypto: ctypes.CDLL, chain: "list[int]") -> str:
    """Subject of the first certificate that is not a proxy: the end entity's."""
    name = ""
    for certificate in chain:
        buffer = ctypes.create_string_buffer(_NAME_BYTES)
        crypto.X509_NAME_oneline(crypto.X509_get_subject_name(certificate), buffer, _NAME_BYTES)
        name = buffer.value.decode("ascii", "backslashreplace")
        if not crypto.X509_get_extension_flags(certificate) & _IS_PROXY and not name.endswith(_LEGACY_PROXY):
            return name
    return name
