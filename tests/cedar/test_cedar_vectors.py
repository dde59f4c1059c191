"""Published byte sequences: what stock HTCondor and independent programs produce."""

from __future__ import annotations

from cedar import crypto, security_token, tokens
from cedar.claims import ClaimId
from cedar.classads import from_wire
from cedar.codec import Reader, encode
from cedar.commands import Command
from cedar.frames import Frames

SECRET = b"00112233445566778899aabbccddeeff" * 2
KEY = bytes.fromhex("cba26c39371e9ca8147e8bf6c813a5f4c4432c99e8d2794c0e58c7e786d554eb")
IV = bytes(range(16))


def sent(frames: Frames, *items: object) -> str:
    body = encode(items, keyed=frames.keyed)  # type: ignore[arg-type]
    return b"".join(frames.packets(body)).hex()


def read(frames: Frames, wire: str) -> Reader:
    frames.feed(bytes.fromhex(wire))
    body = frames.next_message()
    assert body is not None
    return Reader(body, keyed=frames.keyed)


def test_v1_clear_int() -> None:
    assert sent(Frames(), Command.NOP) == "0100000008000000000000ea6b"
    assert read(Frames(), "0100000008000000000000ea6b").int() == 60011


def test_v2_clear_ad() -> None:
    wire = "010000001b000000000000000241203d20310042203d2022785c227922000000"
    ad = from_wire(["A = 1", 'B = "x\\"y"'])
    assert sent(Frames(), ad) == wire
    reader = read(Frames(), wire)
    assert reader.ad() == ad
    reader.end()


def test_v3_session_key() -> None:
    assert crypto.session_key(SECRET) == KEY


V4_FIRST = (
    "0100000034000102030405060708090a0b0c0d0e0f7c9a5ec1677ce9347d7ddf073250abf266d22d5bca99bf135626c63f5b1efa78890ab758"
)
V4_SECOND = "0100000018a7d47b20ab3aaab3397e301aef0b71290c2b1932b1addd98"


def test_v4_encrypted_from_the_start() -> None:
    out, back = Frames(), Frames()
    out.use_key(KEY, iv=IV)
    back.use_key(KEY)
    assert sent(out, 441, "abc") == V4_FIRST
    assert sent(out, 7) == V4_SECOND
    reader = read(back, V4_FIRST)
    assert (reader.int(), reader.string()) == (441, "abc")
    assert read(back, V4_SECOND).int() == 7


def test_v5_digest_of_clear_bytes_and_wrapped_nonce() -> None:
    out, back = Frames(), Frames()
    clear = sent(out, 60010)
    assert clear == "0100000008000000000000ea6a"
    digest = "9fda9a30ff820da497c92577a29a9aca32c2810d1f933c67570afc105d81b454"
    assert crypto.digest(bytes.fromhex(clear)).hex() == digest
    assert read(back, clear).int() == 60010
    out.use_key(KEY, iv=b"\xff" * 4 + bytes(12))
    back.use_key(KEY)
    first = "0100000028ffffffff000000000000000000000000f6b3a05076989676ee33ffe63bfbb92f7467a12d3a2a5142"
    second = "0100000018cdbf4be4b04b956e8a1edece34f2b6bbe861fe8bc72fc49a"
    assert sent(out, 1) == first
    assert sent(out, 2) == second
    assert read(back, first).int() == 1
    assert read(back, second).int() == 2


def test_v7_real() -> None:
    assert encode([3.5], keyed=True) == encode([1879048191, 2], keyed=True)
    assert abs(Reader(encode([3.5], keyed=True), keyed=True).real() - 3.5) < 1e-8


V8 = (
    "<192.0.2.7:9618?CCBID=198.51.100.1:9618%3faddrs%3d198.51.100.1-9618#17&noUDP>#1700000000#3#"
    '[Encryption="YES";Integrity="YES";CryptoMethods="AES";ShortVersion="24.0.1";]'
    "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0"
)


def test_v8_claim_id() -> None:
    claim = ClaimId.parse(V8)
    assert claim.session_id.endswith(">#1700000000#3")
    assert claim.secret == V8[-64:]
    assert claim.key().hex() == "4d528adda74f0b46f3dffe24a8942c36314c17fc72df956223d757ea9136b337"
    assert (claim.address.host, claim.address.port) == ("192.0.2.7", 9618)
    assert claim.address.params["CCBID"] == "198.51.100.1:9618?addrs=198.51.100.1-9618#17"
    assert claim.secret not in repr(claim)
    assert claim.secret not in claim.public
    assert claim.attributes()["shortversion"] == "24.0.1"


AA, BB = b"\xaa" * 256, b"\xbb" * 256


def test_v6_token_exchange() -> None:
    ka = security_token.shared_key(b"\x01" * 32, "aGVhZGVy.cGF5bG9hZA")
    assert ka.hex() == "ffd47d695966c62edaa1274d61460c1c508f99a11d64f481172db2673882d70f"
    exchange = security_token.Exchange(ka, "alice@d", "srv", AA, BB)
    assert exchange.server_proof().hex() == "f254a2981a0f6cfca5c5af2610d248971375f8d7"
    assert exchange.client_proof().hex() == "206373c82a05a8def46066a9309c3220df981756"


V9_KEY = bytes.fromhex("dfafbdebdbabb9e7d7a7b5e3d3a3b1ffcfbfadfbcbbba9f7c7b7a5f3c3b3a1cf")
V9_INIT = (
    "eyJhbGciOiJIUzI1NiIsImtpZCI6IlBPT0wifQ.eyJpYXQiOjE3MDAwMDAwMDAsImlzcyI6InBvb2wuZXhhbXBsZSIs"
    "Imp0aSI6IjAwZmYiLCJzdWIiOiJjb25kb3JAcG9vbC5leGFtcGxlIn0"
)


def test_v9_token_server() -> None:
    verified = tokens.verify(V9_INIT, {"POOL": V9_KEY}, "pool.example", now_unix_s=1.7e9)
    assert verified.identity == "condor@pool.example"
    assert verified.signature.hex() == "32698c12767b2646977ee10ea043adeafc810ba65c1ead5d86ad0165c5bf7554"
    ka = security_token.shared_key(verified.signature, V9_INIT)
    assert ka.hex() == "ab80e9cb0d0e907a8979d51ef75cc8cb70129af674998158f99967bc44dcf27d"
    exchange = security_token.Exchange(ka, "condor@pool.example", "condor@password", AA, BB)
    assert exchange.server_proof().hex() == "9816f4cd774422b154219888a6c113f3913210fc"
    assert exchange.client_proof().hex() == "cd94ce788d628e6d43c4ab3557a87f4acf89c0bd"
