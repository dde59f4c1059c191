"""Is a chain to be believed? RFC 3820 proxies up to a CA of the site's directory, by libcrypto.

The native counterpart of LCMAPS's verify_proxy, used where there is no LCMAPS. libcrypto checks
signatures, dates, names, path lengths and revocation; what it leaves out is checked here: a limited
proxy that turns full again, proxies that carry no rights, signing policies. A CRL or signing policy
that is missing is accepted, as LCMAPS does; one that is there counts, and a damaged one is never
taken for a missing one.
"""

import ctypes
import os

from glexec import credential, der, trust
from glexec.codes import DENIED, INTERNAL, Failure

TYPE_CHECKING = False  # the typing module costs milliseconds
if TYPE_CHECKING:
    from collections.abc import Callable

_P, _I, _L = ctypes.c_void_p, ctypes.c_int, ctypes.c_ulong
_ALLOW_PROXIES, _CRL_CHECK, _CRL_CHECK_ALL = 0x40, 0x4, 0x8  # X509_V_FLAG_*, openssl/x509_vfy.h
_NO_CRL = 3  # X509_V_ERR_UNABLE_TO_GET_CRL
# The site's revocation list is unusable: undecodable, badly signed, from the future, outdated.
_SITES_FAULT = (3, 5, 6, 8, 11, 12, 15, 16, 33)
# Signatures that can be forged by collisions: RSA with MD2, MD4, MD5; and with SHA-1 RSA, ECDSA, DSA. The VOMS
# tools of today still sign proxies with SHA-1, by the user's own key; there it has to be taken, elsewhere not.
_MD5 = tuple(bytes.fromhex("2a864886f70d01010" + digit) for digit in "234")
_SHA1 = (bytes.fromhex("2a864886f70d010105"), bytes.fromhex("2a8648ce3d0401"), bytes.fromhex("2a8648ce380403"))
_SECURITY_BITS = 80  # an RSA key of 1024 bits: old tools still make such proxies, which live for hours
_LIMIT_POLICY_BYTES = 64 << 10
_PROXY_CERT_INFO = bytes.fromhex("2b0601050507010e")  # 1.3.6.1.5.5.7.1.14
_INHERIT = bytes.fromhex("2b06010505071501")  # 1.3.6.1.5.5.7.21.1
_LIMITED = bytes.fromhex("2b060104019b5001010109")  # 1.3.6.1.4.1.3536.1.1.1.9, Globus
LIMITED_RULES = ("allow", "disallow", "require")


class Untrusted(Failure):
    """The chain is not believed; `details` are for the site's log."""

    def __init__(self, details: str, code: int = DENIED) -> None:
        text = "denied: the site's policy does not map this credential"
        super().__init__(code, text if code == DENIED else "the site cannot verify credentials: " + details)
        self.details = details


def verify(holder: credential.Credential, directory: str, limited: str) -> None:
    """Untrusted (203; 202 where it is the site's files) unless the chain is good.

    `limited` is one of LIMITED_RULES: what the policy says of limited proxies.
    """
    believe(holder.crypto, holder.chain[0], holder.chain[1:], directory, proxies=True)
    owner = holder.owner
    languages = [_language(holder.der(number)) for number in range(owner)]
    if any(language not in (_INHERIT, _LIMITED) for language in languages):
        raise Untrusted("a proxy of a kind that does not carry its owner's rights")
    is_limited = _LIMITED in languages
    # The first one is the leaf's: what a limited proxy makes is limited.
    if is_limited and languages != sorted(languages, key=_LIMITED.__ne__):
        raise Untrusted("a proxy made by a limited one claims full rights")
    if limited == "disallow" and is_limited:
        raise Untrusted("a limited proxy, which this policy does not allow")
    if limited == "require" and not is_limited:
        raise Untrusted("not a limited proxy, which this policy requires")


def _language(raw: bytes) -> bytes:
    """The policy language of a proxy, as an encoded object identifier."""
    try:
        info = der.one(der.Certificate(raw).extensions[_PROXY_CERT_INFO]).children()
        policy = info[-1] if info else None
        return policy.child(0).expect(der.OID) if policy is not None else b""
    except (der.Bad, KeyError):
        raise Untrusted("a proxy whose proxyCertInfo cannot be read") from None


def believe(crypto: ctypes.CDLL, leaf: int, others: "list[int]", directory: str, proxies: bool = False) -> "list[int]":
    """The chain from the leaf to a trusted CA; Untrusted otherwise."""
    if not os.path.isdir(directory):
        raise Untrusted("there is no directory %s" % directory, INTERNAL)
    _declare(crypto)
    store = crypto.X509_STORE_new()
    if crypto.X509_STORE_load_locations(store, None, os.fsencode(directory)) != 1:
        raise Untrusted("%s cannot be used" % directory, INTERNAL)
    untrusted = crypto.OPENSSL_sk_new_null()
    for certificate in others:
        crypto.OPENSSL_sk_push(untrusted, certificate)
    context = crypto.X509_STORE_CTX_new()
    if crypto.X509_STORE_CTX_init(context, store, leaf, untrusted) != 1:
        raise Untrusted("libcrypto cannot start", INTERNAL)
    flags = _CRL_CHECK | _CRL_CHECK_ALL | (_ALLOW_PROXIES if proxies else 0)
    crypto.X509_STORE_CTX_set_flags(context, flags)
    pardon = _CALLBACK(_pardon_missing_lists(crypto, directory))
    crypto.X509_STORE_CTX_set_verify_cb(context, pardon)
    good = crypto.X509_verify_cert(context) == 1
    error = crypto.X509_STORE_CTX_get_error(context)
    if not good or error:
        words = crypto.X509_verify_cert_error_string(error).decode("ascii", "replace")
        code = INTERNAL if error in _SITES_FAULT else DENIED
        raise Untrusted(
            "error %d at depth %d: %s" % (error, crypto.X509_STORE_CTX_get_error_depth(context), words), code
        )
    found = crypto.X509_STORE_CTX_get0_chain(context)
    chain = [crypto.OPENSSL_sk_value(found, number) for number in range(crypto.OPENSSL_sk_num(found))]
    require_sites_files(crypto, chain, directory)
    _check_methods(crypto, chain)
    _check_policies(crypto, chain, directory)
    return chain


def require_sites_files(crypto: ctypes.CDLL, certificates: "list[int]", directory: str) -> None:
    """Failure(202) unless what the directory says of their issuers is the site's alone, file by file."""
    for certificate in certificates:
        if crypto.X509_get_extension_flags(certificate) & credential.IS_PROXY:
            continue
        stem = "%s/%08x." % (directory, _name_hash(crypto, crypto.X509_get_issuer_name(certificate)))
        if os.path.lexists(stem + "signing_policy"):
            trust.require(stem + "signing_policy")
        for kind in ("", "r"):
            number = 0
            while os.path.lexists("%s%s%d" % (stem, kind, number)):
                trust.require("%s%s%d" % (stem, kind, number))
                number += 1


def _check_methods(crypto: ctypes.CDLL, chain: "list[int]") -> None:
    """No certificate below the trusted one is signed by a method that is no longer safe, none has a weak key."""
    for certificate in chain[:-1]:
        is_proxy = crypto.X509_get_extension_flags(certificate) & credential.IS_PROXY
        try:
            method = der.one(credential.encoded(crypto, certificate)).child(1).child(0).expect(der.OID)
        except der.Bad:
            raise Untrusted("a certificate that cannot be read") from None
        if method in _MD5 or (method in _SHA1 and not is_proxy):
            raise Untrusted("a certificate is signed with a method that is no longer safe (such as SHA-1)")
    for certificate in chain:
        key = crypto.X509_get0_pubkey(certificate)
        if not key or _security_bits(crypto, key) < _SECURITY_BITS:
            raise Untrusted("a certificate has a key that is too short, or of an unknown kind")


def _security_bits(crypto: ctypes.CDLL, key: int) -> int:
    """Whatever the kind of key: what an attacker has to try, as a power of two."""
    name = "EVP_PKEY_get_security_bits"  # OpenSSL 3, where the other one is a macro
    name = name if hasattr(crypto, name) else "EVP_PKEY_security_bits"
    credential.declare(crypto, {name: (_P,)}, _I)
    return int(getattr(crypto, name)(key))


_CALLBACK = ctypes.CFUNCTYPE(_I, _I, _P)


def _pardon_missing_lists(crypto: ctypes.CDLL, directory: str) -> "Callable[[int, int], int]":
    """libcrypto wants a CRL of every CA; a grid's directory may have none for some."""

    def callback(good: int, context: int) -> int:
        if good or crypto.X509_STORE_CTX_get_error(context) != _NO_CRL:
            return good
        issuer = crypto.X509_get_issuer_name(crypto.X509_STORE_CTX_get_current_cert(context))
        if os.path.lexists("%s/%08x.r0" % (directory, _name_hash(crypto, issuer))):
            return 0  # it is there, and libcrypto could not use it
        crypto.X509_STORE_CTX_set_error(context, 0)
        return 1

    return callback


def _name_hash(crypto: ctypes.CDLL, name: int) -> int:
    """The number that the directory's files of a CA are named by."""
    if hasattr(crypto, "X509_NAME_hash_ex"):  # OpenSSL 3, where the other one is a macro
        credential.declare(crypto, {"X509_NAME_hash_ex": (_P,) * 4}, _L)
        return int(crypto.X509_NAME_hash_ex(name, None, None, None))
    credential.declare(crypto, {"X509_NAME_hash": (_P,)}, _L)
    return int(crypto.X509_NAME_hash(name))


def _declare(crypto: ctypes.CDLL) -> None:
    pointers = {
        "X509_STORE_new": (),
        "OPENSSL_sk_new_null": (),
        "X509_STORE_CTX_new": (),
        "X509_STORE_CTX_get0_chain": (_P,),
        "X509_STORE_CTX_get_current_cert": (_P,),
        "OPENSSL_sk_value": (_P, _I),
    }  # type: dict[str, tuple[object, ...]]
    numbers = {
        "X509_STORE_load_locations": (_P, ctypes.c_char_p, ctypes.c_char_p),
        "OPENSSL_sk_push": (_P, _P),
        "OPENSSL_sk_num": (_P,),
        "X509_STORE_CTX_init": (_P,) * 4,
        "X509_verify_cert": (_P,),
        "X509_STORE_CTX_get_error": (_P,),
        "X509_STORE_CTX_get_error_depth": (_P,),
    }  # type: dict[str, tuple[object, ...]]
    nothing = {
        "X509_STORE_CTX_set_flags": (_P, _L),
        "X509_STORE_CTX_set_verify_cb": (_P, _CALLBACK),
        "X509_STORE_CTX_set_error": (_P, _I),
    }  # type: dict[str, tuple[object, ...]]
    credential.declare(crypto, pointers, _P)
    credential.declare(crypto, numbers, _I)
    credential.declare(crypto, nothing, None)
    credential.declare(crypto, {"X509_verify_cert_error_string": (_L,)}, ctypes.c_char_p)


# Signing policies: which names a CA may give.


def _check_policies(crypto: ctypes.CDLL, chain: "list[int]", directory: str) -> None:
    for number, authority in enumerate(chain[1:]):
        certificate = chain[number]
        if crypto.X509_get_extension_flags(certificate) & credential.IS_PROXY:  # a proxy: named by its owner
            continue
        issuer = crypto.X509_get_subject_name(authority)
        file = "%s/%08x.signing_policy" % (directory, _name_hash(crypto, issuer))
        text = _policy_text(file)
        name = credential.oneline(crypto, crypto.X509_get_subject_name(certificate))
        if text is not None and not _allows(text, credential.oneline(crypto, issuer), name):
            raise Untrusted("%s does not let its CA sign %s" % (file, name))


def _policy_text(file: str) -> "str | None":
    try:
        with open(file, "rb") as stream:
            data = stream.read(_LIMIT_POLICY_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError:
        raise Untrusted("%s cannot be read" % file, INTERNAL) from None
    if len(data) > _LIMIT_POLICY_BYTES:
        raise Untrusted("%s is too large" % file, INTERNAL)
    return data.decode("utf-8", "replace")


def _allows(text: str, issuer: str, name: str) -> bool:
    """Does an entry for this CA that grants CA:sign name the subject? Other lines grant nothing."""
    ours = signs = False
    for line in text.splitlines():
        words = line.split(None, 2)
        if len(words) < 3 or words[0].startswith("#"):
            continue
        value = words[2].strip()
        if words[0] == "access_id_CA":
            ours, signs = words[1] == "X509" and _spelled(value.strip("'\"")) == _spelled(issuer), False
        elif words[:2] == ["pos_rights", "globus"]:
            signs = value == "CA:sign"
        elif words[:2] == ["cond_subjects", "globus"] and ours and signs:
            patterns = value.strip("'").split('"')[1::2] if '"' in value else [value.strip("'")]
            if any(_matches(_spelled(pattern), _spelled(name)) for pattern in patterns):
                return True
    return False


def _matches(pattern: str, name: str) -> bool:
    """Only `*` is special in a signing policy."""
    parts = pattern.split("*")
    if len(parts) == 1:
        return pattern == name
    if not name.startswith(parts[0]) or not name[len(parts[0]) :].endswith(parts[-1]):
        return False
    place, end = len(parts[0]), len(name) - len(parts[-1])
    for part in parts[1:-1]:
        place = name.find(part, place, end)
        if place < 0:
            return False
        place += len(part)
    return place <= end


def _spelled(name: str) -> str:
    """One attribute has had several spellings in policies of different ages."""
    for old, new in (("/E=", "/emailAddress="), ("/Email=", "/emailAddress="), ("/USERID=", "/UID=")):
        name = name.replace(old, new)
    return name
