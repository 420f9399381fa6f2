"""Every route refuses a forged token. A forged token causes no 500 and takes no database connection."""

import asyncio
import hmac
import json
import logging
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import cache
from hashlib import sha256
from string import ascii_lowercase, ascii_uppercase, digits
from time import time
from typing import Final, NamedTuple
from zlib import compress

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, PSS
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support import SECRET, exchange, make_settings, serving
from tests.tokens import (
    KeyServer,
    Signer,
    base64url,
    claims_of,
    counted_checkouts,
    new_signer,
    serving_keys,
    sign,
    signature,
    signer,
)

ISSUER: Final = "https://auth.example.com"
AUDIENCE: Final = "tasks"
EXPECTED: Final = {"auth_issuer": ISSUER, "auth_audience": AUDIENCE}
MISSING: Final = "019aa9f4-5c1e-7d3a-9f60-2b8c41d7e5aa"
TASKS: Final = "/api/mia/tasks"
CALLS: Final = (
    ("GET", TASKS, ""),
    ("POST", TASKS, '{"title": "Buy oat milk"}'),
    ("GET", f"{TASKS}/{MISSING}", ""),
    ("PUT", f"{TASKS}/{MISSING}", '{"title": "Buy two"}'),
    ("DELETE", f"{TASKS}/{MISSING}", ""),
    ("PATCH", f"{TASKS}/{MISSING}/complete", ""),
)
# HS256 uses the secret, the others use keys of an issuer.
ALGORITHMS: Final = ("HS256", "EdDSA", "ES256", "RS256")
PUBLISHED: Final = ALGORITHMS[1:]
BASE64URL: Final = ascii_uppercase + ascii_lowercase + digits + "-_"
DAY: Final = 86_400
ED25519_ORDER: Final = 2**252 + 27_742_317_777_372_353_535_851_937_790_883_648_493
P256_ORDER: Final = 0xFFFFFFFF_00000000_FFFFFFFF_FFFFFFFF_BCE6FAAD_A7179E84_F3B9CAC2_FC632551
KEY: Final = {"algorithm", "unknown key"}  # an issuer's key is found by algorithm and key id

Forge = Callable[[Signer], str]


class Forgery(NamedTuple):
    """A token that is valid except in one respect, and the reasons that the log may give."""

    reasons: set[str]
    make: Forge


hostile: Final = settings(
    max_examples=50,
    deadline=None,  # the machine may be busy
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # all examples may share one user
)


def valid_claims() -> dict[str, object]:
    """The claims of a valid token."""
    return claims_of("mia", iss=ISSUER, aud=AUDIENCE, jti="a" * 40)


def claims(reason: str, **changes: object) -> Forgery:
    return Forgery({reason}, lambda key: key.issue(valid_claims() | changes))


def absent(reason: str, name: str) -> Forgery:
    return Forgery(
        {reason}, lambda key: key.issue({claim: value for claim, value in valid_claims().items() if claim != name})
    )


def appended(members: str) -> Forgery:
    """Valid claims, followed by JSON that Python would not write."""
    return payload(lambda: json.dumps(valid_claims())[:-1].encode() + b", " + members.encode() + b"}")


def payload(make: Callable[[], bytes]) -> Forgery:
    return Forgery({"malformed"}, lambda key: sign(head(key), make(), key.key))


def header(reasons: set[str], **changes: object) -> Forgery:
    return Forgery(reasons, lambda key: key.issue(valid_claims(), **changes))


def raw_header(make: Callable[[bytes], bytes]) -> Forgery:
    return Forgery({"malformed"}, lambda key: sign(make(head(key)), json.dumps(valid_claims()).encode(), key.key))


def resign(make: Callable[[bytes, Signer], bytes]) -> Forgery:
    """A signature that is derived from the valid signature."""
    return with_signature(lambda message, key: make(signature(message, key.key), key))


def with_signature(make: Callable[[bytes, Signer], bytes]) -> Forgery:
    """A signature that is computed from the signed text in another way."""

    def forge(key: Signer) -> str:
        signed, _, _ = key.issue(valid_claims()).rpartition(".")
        return f"{signed}.{base64url(make(signed.encode(), key))}"

    return Forgery({"signature"}, forge)


def rewritten(make: Callable[[str], str], reasons: set[str] | None = None) -> Forgery:
    """A change to the text of a valid token."""
    return Forgery(reasons or {"malformed"}, lambda key: make(key.issue(valid_claims())))


def head(key: Signer) -> bytes:
    return json.dumps({"alg": key.algorithm, "kid": key.kid} if key.kid else {"alg": key.algorithm}).encode()


def written(end: str) -> bytes:
    """Valid claims, with this text as the value of `exp`."""
    return json.dumps(valid_claims() | {"exp": 0}).replace('"exp": 0', f'"exp": {end}').encode()


def claims_for(user: str) -> dict[str, object]:
    return valid_claims() | {"sub": user}


def another(algorithm: str) -> str:
    return ALGORITHMS[ALGORITHMS.index(algorithm) - 1]


@cache
def impostor(key: Signer) -> Signer:
    """Returns another key with the same key id."""
    return new_signer(key.algorithm, key.kid)


def secret(key: bytes) -> Signer:
    return Signer("HS256", None, key)


def with_signature_of(key: Signer, other: str) -> str:
    """Returns a token with the signature of another token."""
    return key.issue(valid_claims()).rpartition(".")[0] + "." + other.rpartition(".")[2]


def in_the_base64_alphabet(key: Signer) -> str:
    """Returns a token whose signature has a character of base64 that base64url does not have."""
    for number in range(1_000):
        signed, _, signed_with = key.issue(valid_claims() | {"jti": str(number)}).rpartition(".")
        if "-" in signed_with or "_" in signed_with:
            return f"{signed}.{signed_with.replace('-', '+').replace('_', '/')}"
    raise AssertionError


def wide_es256(good: bytes, _: Signer) -> bytes:
    """The same two numbers, each padded with one more byte."""
    return b"\0" + good[:32] + b"\0" + good[32:]


def enlarged_ed25519(good: bytes, _: Signer) -> bytes:
    """Adds the group order: a verifier without a range check accepts the result (RFC 8032 section 8.4)."""
    number = int.from_bytes(good[32:], "little") + ED25519_ORDER
    return good[:32] + number.to_bytes(32, "little")


def der_of_es256(good: bytes, _: Signer) -> bytes:
    return encode_dss_signature(int.from_bytes(good[:32], "big"), int.from_bytes(good[32:], "big"))


def pss_of_rs256(message: bytes, key: Signer) -> bytes:
    assert isinstance(key.key, RSAPrivateKey)
    return key.key.sign(message, PSS(MGF1(SHA256()), 32), SHA256())


def enlarged_rs256(good: bytes, key: Signer) -> bytes:
    """Adds the modulus: a verifier without a length check accepts the result (RFC 8017 section 8.2.2)."""
    assert isinstance(key.key, RSAPrivateKey)
    return (int.from_bytes(good, "big") + key.key.public_key().public_numbers().n).to_bytes(257, "big")


def public_bytes(key: Signer, encoding: Encoding, form: PublicFormat) -> bytes:
    assert not isinstance(key.key, bytes)
    return key.key.public_key().public_bytes(encoding, form)


FORGED_CLAIMS: Final[dict[str, Forgery]] = {
    "no exp": absent("no exp", "exp"),
    "exp null": claims("malformed", exp=None),
    "exp text": claims("malformed", exp="4102444800"),
    "exp RFC 3339": claims("malformed", exp="2100-01-01T00:00:00Z"),
    "exp true": claims("malformed", exp=True),
    "exp list": claims("malformed", exp=[4_102_444_800]),
    "exp object": claims("malformed", exp={"$date": 4_102_444_800}),
    "exp negative": claims("malformed", exp=-1),
    "exp 0": claims("expired", exp=0),
    "exp past": Forgery({"expired"}, lambda key: key.issue(valid_claims() | {"exp": int(time()) - DAY})),
    "exp in milliseconds": claims("malformed", exp=4_102_444_800_000),
    "exp in the year 10000": claims("malformed", exp=253_402_300_800),
    "exp 10**400": claims("malformed", exp=10**400),
    "exp of 5,000 digits": payload(lambda: written("9" * 5_000)),
    "exp 1e400": payload(lambda: written("1e400")),
    "exp in hexadecimal": payload(lambda: written("0xF4865700")),
    "exp NaN": claims("malformed", exp=float("nan")),
    "exp Infinity": claims("malformed", exp=float("inf")),
    "exp -Infinity": claims("malformed", exp=float("-inf")),
    "exp twice": appended('"exp": 4102444800'),
    "nbf future": Forgery({"not valid yet"}, lambda key: key.issue(valid_claims() | {"nbf": int(time()) + DAY})),
    "nbf text": claims("malformed", nbf="0"),
    "nbf null": claims("malformed", nbf=None),
    "nbf false": claims("malformed", nbf=False),
    "nbf NaN": claims("malformed", nbf=float("nan")),
    "nbf 10**400": claims("malformed", nbf=10**400),
    "iat future": Forgery({"not valid yet"}, lambda key: key.issue(valid_claims() | {"iat": int(time()) + DAY})),
    "iat text": claims("malformed", iat="0"),
    "iat null": claims("malformed", iat=None),
    "iat Infinity": claims("malformed", iat=float("inf")),
    "no sub": absent("user id", "sub"),
    "sub empty": claims("user id", sub=""),
    "sub null": claims("malformed", sub=None),
    "sub number": claims("malformed", sub=1),
    "sub true": claims("malformed", sub=True),
    "sub list": claims("malformed", sub=["mia"]),
    "sub object": claims("malformed", sub={"id": "mia"}),
    "sub NUL": claims("user id", sub="\0"),
    "sub with NUL at the end": claims("user id", sub="mia\0"),
    "sub lone surrogate": claims("user id", sub="mia\ud800"),
    "sub white space": claims("user id", sub=" "),
    "sub with a space at the end": claims("user id", sub="mia "),
    "sub with a tab before": claims("user id", sub="\tmia"),
    "sub with a line feed at the end": claims("user id", sub="mia\n"),
    "sub with CRLF": claims("user id", sub="mia\r\nX: a"),
    "sub with ANSI": claims("user id", sub="\x1b[31mmia"),
    "sub of 129 characters": claims("user id", sub="a" * 129),
    "sub with a slash": claims("user id", sub="eve/../mia"),
    "sub percent-encoded": claims("user id", sub="%6Dia"),
    "sub with a wildcard": claims("user id", sub="*"),
    "sub with SQL": claims("user id", sub="mia' OR '1'='1"),
    "sub not ASCII": claims("user id", sub="mi\u00e1"),
    "sub full width": claims("user id", sub="\uff4d\uff49\uff41"),
    "sub with a zero-width space": claims("user id", sub="mia\u200b"),
    "sub with a digit of another script": claims("user id", sub="mia\u0661"),
    "sub twice": appended('"sub": "mia"'),
    "sub twice, once escaped": appended(r'"\u0073ub": "mia"'),
    "sub twice, first of another user": payload(lambda: b'{"sub": "eve", ' + json.dumps(valid_claims())[1:].encode()),
    "nested claim twice": appended('"user": {"id": "mia", "id": "eve"}'),
    "no iss": absent("no iss", "iss"),
    "iss of another issuer": claims("issuer", iss="https://evil.example"),
    "iss with a slash at the end": claims("issuer", iss=f"{ISSUER}/"),
    "iss cut short": claims("issuer", iss=ISSUER[:-1]),
    "iss in another case": claims("issuer", iss=ISSUER.upper()),
    "iss empty": claims("issuer", iss=""),
    "iss null": claims("issuer", iss=None),
    "iss list": claims("issuer", iss=[ISSUER]),
    "iss object": claims("issuer", iss={ISSUER: ISSUER}),
    "iss twice": appended(f'"iss": "{ISSUER}"'),
    "no aud": absent("no aud", "aud"),
    "aud of another service": claims("audience", aud="other"),
    "aud cut short": claims("audience", aud=AUDIENCE[:-1]),
    "aud in another case": claims("audience", aud=AUDIENCE.upper()),
    "aud list of other services": claims("audience", aud=["other", "tasks2"]),
    "aud list with a number": claims("audience", aud=[AUDIENCE, 1]),
    "aud nested list": claims("audience", aud=[[AUDIENCE]]),
    "aud object": claims("audience", aud={AUDIENCE: AUDIENCE}),
    "aud true": claims("audience", aud=True),
    "aud empty": claims("no aud", aud=""),
    "aud empty list": claims("no aud", aud=[]),
    "aud null": claims("no aud", aud=None),
    "aud twice": appended(f'"aud": "{AUDIENCE}"'),
    "jti number": claims("malformed", jti=1),
    "payload is a list": payload(lambda: json.dumps([valid_claims()]).encode()),
    "payload is a string": payload(lambda: json.dumps(json.dumps(valid_claims())).encode()),
    "payload is a number": payload(lambda: b"1"),
    "payload is null": payload(lambda: b"null"),
    "payload empty": payload(lambda: b""),
    "payload not JSON": payload(lambda: b"sub=mia&exp=4102444800"),
    "payload cut short": payload(lambda: json.dumps(valid_claims()).encode()[:-1]),
    "payload with trailing data": payload(lambda: json.dumps(valid_claims()).encode() + b"{}"),
    "payload not UTF-8": payload(lambda: json.dumps(valid_claims())[:-1].encode() + b', "a": "\xff"}'),
    "payload in UTF-16": payload(lambda: json.dumps(valid_claims()).encode("utf-16")),
    "payload in UTF-32": payload(lambda: json.dumps(valid_claims()).encode("utf-32-be")),
    "payload with a byte order mark": payload(lambda: b"\xef\xbb\xbf" + json.dumps(valid_claims()).encode()),
    "payload compressed": payload(lambda: compress(json.dumps(valid_claims()).encode())),
    "payload deeply nested": payload(lambda: b"[" * 2_800 + b"]" * 2_800),
    "payload deeply nested and unclosed": payload(lambda: b'{"a":' * 1_100),
}

FORGED_HEADERS: Final[dict[str, Forgery]] = {
    **{f"alg {alg}": header(KEY, alg=alg) for alg in ("none", "None", "NONE", "nOnE", "", "null", "HS384", "HS512")},
    **{f"alg {alg}": header(KEY, alg=alg) for alg in ("PS256", "RS512", "ES384", "ES256K", "Ed25519", "dir", "A128KW")},
    "alg null": header(KEY, alg=None),
    "alg true": header(KEY, alg=True),
    "alg number": header(KEY, alg=256),
    "alg list": Forgery(KEY, lambda key: key.issue(valid_claims(), alg=[key.algorithm])),
    "alg object": Forgery(KEY, lambda key: key.issue(valid_claims(), alg={key.algorithm: key.algorithm})),
    "alg in lower case": Forgery(KEY, lambda key: key.issue(valid_claims(), alg=key.algorithm.lower())),
    "alg with a space": Forgery(KEY, lambda key: key.issue(valid_claims(), alg=f"{key.algorithm} ")),
    "alg with NUL": Forgery(KEY, lambda key: key.issue(valid_claims(), alg=f"{key.algorithm}\0")),
    "alg of another supported kind of key": Forgery(
        KEY, lambda key: key.issue(valid_claims(), alg=another(key.algorithm))
    ),
    "alg twice, then none": Forgery(
        KEY, lambda key: sign(head(key)[:-1] + b', "alg": "none"}', json.dumps(valid_claims()).encode(), key.key)
    ),
    "no alg": Forgery(
        KEY,
        lambda key: sign(json.dumps({"kid": key.kid or "a"}).encode(), json.dumps(valid_claims()).encode(), key.key),
    ),
    "kid number": header({"malformed"}, kid=1),
    "kid null": header({"malformed"}, kid=None),
    "kid list": header({"malformed"}, kid=["key-EdDSA"]),
    "kid object": header({"malformed"}, kid={}),
    "crit unknown": header({"malformed"}, crit=["a"], a=1),
    "crit empty": header({"malformed"}, crit=[]),
    "crit text": header({"malformed"}, crit="exp"),
    "crit null": header({"malformed"}, crit=None),
    "crit number": header({"malformed"}, crit=[1]),
    "crit of an absent parameter": header({"malformed"}, crit=["b64"]),
    "b64 false": header({"malformed"}, b64=False),
    "b64 false and crit": header({"malformed"}, b64=False, crit=["b64"]),
    "header is a list": raw_header(lambda header: b"[%s]" % header),
    "header is a string": raw_header(lambda header: json.dumps(header.decode()).encode()),
    "header is null": raw_header(lambda _: b"null"),
    "header empty": raw_header(lambda _: b""),
    "header not JSON": raw_header(lambda _: b"alg=none"),
    "header cut short": raw_header(lambda header: header[:-1]),
    "header with trailing data": raw_header(lambda header: header + b"{}"),
    "header not UTF-8": raw_header(lambda header: header[:-1] + b', "a": "\xff"}'),
    "header deeply nested": raw_header(lambda _: b"[" * 2_800 + b"]" * 2_800),
    "header deeply nested and unclosed": raw_header(lambda _: b'{"a":' * 1_100),
    "header with 5,000 digits": raw_header(lambda header: header[:-1] + b', "a": ' + b"9" * 4_500 + b"}"),
}

FORGED_SIGNATURES: Final[dict[str, Forgery]] = {
    "of another key": Forgery({"signature"}, lambda key: impostor(key).issue(valid_claims())),
    "of other claims": Forgery(
        {"signature"}, lambda key: with_signature_of(key, key.issue(valid_claims() | {"sub": "eve"}))
    ),
    "of the payload alone": with_signature(lambda message, key: signature(message.partition(b".")[2], key.key)),
    "of the decoded payload": with_signature(lambda _, key: signature(json.dumps(valid_claims()).encode(), key.key)),
    "one byte shorter": resign(lambda good, _: good[:-1]),
    "cut to one byte": resign(lambda good, _: good[:1]),
    "cut to half": resign(lambda good, _: good[: len(good) // 2]),
    "one byte longer": resign(lambda good, _: good + b"\0"),
    "with a leading zero byte": resign(lambda good, _: b"\0" + good),
    "repeated": resign(lambda good, _: good * 2),
    "with a bit changed at the start": resign(lambda good, _: bytes([good[0] ^ 1]) + good[1:]),
    "with a bit changed at the end": resign(lambda good, _: good[:-1] + bytes([good[-1] ^ 1])),
    "backwards": resign(lambda good, _: good[::-1]),
    "all zero": resign(lambda good, _: bytes(len(good))),
    "all ones": resign(lambda good, _: b"\xff" * len(good)),
    "0x01 and zeros": resign(lambda good, _: b"\x01" + bytes(len(good) - 1)),
    "a single zero byte": resign(lambda _, __: b"\0"),
    "in hexadecimal": resign(lambda good, _: good.hex().encode()),
    "encoded twice in base64url": resign(lambda good, _: base64url(good).encode()),
    "empty": rewritten(lambda token: token.rpartition(".")[0] + "."),
    "missing": rewritten(lambda token: token.rpartition(".")[0]),
    "with padding": rewritten(lambda token: token + "="),
    "with padding twice": rewritten(lambda token: token + "=="),
    "in the base64 alphabet": Forgery({"malformed"}, in_the_base64_alphabet),
    "with a changed unused bit": rewritten(lambda token: token[:-1] + BASE64URL[BASE64URL.index(token[-1]) ^ 1]),
    "one character longer": rewritten(lambda token: token + "A", {"malformed", "signature"}),
    "two characters longer": rewritten(lambda token: token + "AA", {"malformed", "signature"}),
    "four characters longer": rewritten(lambda token: token + "AAAA", {"malformed", "signature"}),
    "with a space within": rewritten(lambda token: f"{token[:-3]} {token[-3:]}"),
    "with a tab within": rewritten(lambda token: f"{token[:-3]}\t{token[-3:]}"),
    "with a byte that is not ASCII": rewritten(lambda token: token + "\xe9"),
    "with a no-break space": rewritten(lambda token: token + "\xa0"),
    "with a Cyrillic letter": rewritten(lambda token: f"{token[:-1]}\u0430".encode().decode("latin-1")),
    "with a comma": rewritten(lambda token: token + ","),
    "with a semicolon": rewritten(lambda token: token + ";"),
    "with a parameter": rewritten(lambda token: token + ", realm=tasks"),
    "percent-encoded": rewritten(lambda token: token.replace(".", "%2E")),
    "quoted": rewritten(lambda token: f'"{token}"'),
    "as a parameter": rewritten(lambda token: f"token={token}"),
    "after a second scheme": rewritten(lambda token: f"Bearer {token}"),
    "followed by a token": rewritten(lambda token: f"{token} {token}"),
    "in a list of two credentials": rewritten(lambda token: f"{token}, Bearer {token}"),
    "followed by a dot and a token": rewritten(lambda token: f"{token}.{token}"),
    "with a leading dot": rewritten(lambda token: f".{token}"),
    "with a trailing dot": rewritten(lambda token: f"{token}."),
    "with two dots": rewritten(lambda token: token.replace(".", "..", 1)),
    "without dots": rewritten(lambda token: token.replace(".", "")),
    "in four parts": rewritten(lambda token: f"{token}.{token.rpartition('.')[2]}"),
    "in five parts, like an encrypted token": rewritten(lambda token: f"{token}.e30.e30"),
    "with its parts in another order": rewritten(lambda token: ".".join(token.split(".")[::-1])),
    "in lower case": rewritten(str.lower, {"malformed", "signature"}),
    "with a padded header": rewritten(lambda token: token.replace(".", "=.", 1)),
    "with a character before the payload": rewritten(
        lambda token: token.replace(".", ".A", 1), {"malformed", "signature"}
    ),
    "with a detached payload": rewritten(lambda token: "..".join([token.split(".")[0], token.split(".")[2]])),
    "as JSON": rewritten(
        lambda token: json.dumps(dict(zip(("protected", "payload", "signature"), token.split("."), strict=True)))
    ),
    "with a payload of 8 KiB": Forgery({"malformed"}, lambda key: key.issue(valid_claims() | {"a": "a" * 8_192})),
    "with a header of 8 KiB": Forgery({"malformed"}, lambda key: key.issue(valid_claims(), a="a" * 8_192)),
    "just a dot": rewritten(lambda _: "."),
    "just two dots": rewritten(lambda _: ".."),
    "the text null": rewritten(lambda _: "null"),
    "a user id": rewritten(lambda _: "mia"),
}

FORGED_HS256: Final[dict[str, Callable[[], Signer]]] = {
    "an empty key": lambda: secret(b""),
    "a zero byte": lambda: secret(b"\0"),
    "a guess": lambda: secret(b"secret"),
    "the secret in upper case": lambda: secret(SECRET.upper().encode()),
    "the secret decoded from hexadecimal": lambda: secret(bytes.fromhex(SECRET)),
    "the secret and a line feed": lambda: secret(f"{SECRET}\n".encode()),
    "the secret cut short": lambda: secret(SECRET[:-1].encode()),
    "an Ed25519 key": lambda: signer("EdDSA"),
    "a P-256 key": lambda: signer("ES256"),
    "an RSA key": lambda: signer("RS256"),
}

PUBLIC_FORMS: Final[dict[str, Callable[[Signer], bytes]]] = {
    "PEM": lambda key: public_bytes(key, Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    "PEM without its last line feed": lambda key: public_bytes(
        key, Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
    ).strip(),
    "DER": lambda key: public_bytes(key, Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
    "SSH": lambda key: public_bytes(key, Encoding.OpenSSH, PublicFormat.OpenSSH),
    "JWK": lambda key: json.dumps(key.jwk).encode(),
    "JWK without spaces": lambda key: json.dumps(key.jwk, separators=(",", ":")).encode(),
    "JWK Set": lambda key: json.dumps({"keys": [key.jwk]}).encode(),
    "base64url number": lambda key: str(key.jwk.get("x") or key.jwk.get("n")).encode(),
    "key id": lambda key: str(key.kid).encode(),
    "empty": lambda _: b"",
}

SIGNATURES_OF_ONE_ALGORITHM: Final[list[tuple[str, Forgery]]] = [
    ("EdDSA", resign(enlarged_ed25519)),
    ("EdDSA", resign(lambda _, __: b"\x01" + bytes(63))),  # a point of small order
    ("ES256", resign(lambda good, _: good[:32] + bytes(32))),
    ("ES256", resign(lambda good, _: bytes(32) + good[32:])),
    ("ES256", resign(lambda _, __: P256_ORDER.to_bytes(32, "big") * 2)),
    ("ES256", resign(lambda good, _: good[32:] + good[:32])),
    ("ES256", resign(wide_es256)),
    ("ES256", resign(der_of_es256)),
    ("RS256", resign(enlarged_rs256)),
    ("RS256", with_signature(pss_of_rs256)),
    ("HS256", with_signature(lambda message, _: hmac.digest(SECRET.encode(), message, "sha512"))),
    ("HS256", with_signature(lambda message, _: hmac.digest(SECRET.encode(), message, "sha512")[:32])),
    ("HS256", with_signature(lambda message, _: sha256(SECRET.encode() + message).digest())),
]

KEY_IDS: Final[dict[str, str]] = {
    "unknown": "key-0",
    "empty": "",
    "of a key of another kind": "key-RS256",
    "in another case": "KEY-EDDSA",
    "with a space": "key-EdDSA ",
    "with NUL": "key-EdDSA\0",
    "NUL": "\0",
    "path": "../../../../dev/null",
    "URL": "http://127.0.0.1:1/keys",
    "SQL": "' UNION SELECT 'key",
    "shell": "|id",
    "lone surrogate": "\ud800",
    "5,000 characters": "a" * 5_000,
    "8,000 characters": "a" * 8_000,
    "of a published secret": "oct-1",
    "of a key for encryption": "enc-1",
}

HEADER_VALUES: Final[dict[str, Callable[[bytes], list[bytes]]]] = {
    "scheme without a token": lambda _: [b"Bearer"],
    "scheme and spaces": lambda _: [b"Bearer   "],
    "twice": lambda good: [good, good],
    "after a Basic header line": lambda good: [b"Basic bWlhOmE=", good],
    "before a Basic header line": lambda good: [good, b"Basic bWlhOmE="],
    "after an empty header line": lambda good: [b"", good],
    "before the token of another user": lambda good: [
        good,
        b"Bearer " + signer("HS256").issue(claims_for("eve")).encode(),
    ],
    "after a tab": lambda good: [good.replace(b" ", b" \t")],
    "before bytes that are not ASCII": lambda good: [good + b"\xff\xfe"],
    "after bytes that are not ASCII": lambda good: [good.replace(b" ", b" \xc2\xa0")],
    "before a comma": lambda good: [good + b","],
    "in quotes": lambda good: [good.replace(b" ", b' "') + b'"'],
}

OCT: Final = new_signer("HS256", "oct-1")

Reply = tuple[int, bytes, bytes]
Refuse = Callable[..., Awaitable[set[str]]]


class Services(NamedTuple):
    """Services with a secret, with an issuer's keys and with user ids in `user.id`, and a forger's key server."""

    of_secret: httpx.URL
    of_keys: httpx.URL
    of_nested: httpx.URL
    forger: KeyServer

    def trusting(self, algorithm: str) -> httpx.URL:
        return self.of_secret if algorithm == "HS256" else self.of_keys


@pytest.fixture(scope="module")
async def services(dsn: str) -> AsyncIterator[Services]:
    published = [signer(algorithm).jwk for algorithm in PUBLISHED]
    for_encryption = new_signer("RS256", "enc-1").jwk | {"use": "enc"}
    del for_encryption["key_ops"]
    async with (
        serving_keys(*published, new_signer("EdDSA", "key-EdDSA-2").jwk, OCT.jwk, for_encryption) as keys,
        serving_keys() as forger,
        serving(make_settings(dsn, auth_jwt_secret=SECRET, **EXPECTED)) as of_secret,
        serving(make_settings(dsn, auth_jwks_url=keys.url, **EXPECTED)) as of_keys,
        serving(make_settings(dsn, auth_jwt_secret=SECRET, auth_user_id_claim="user.id")) as of_nested,
    ):
        yield Services(httpx.URL(of_secret), httpx.URL(of_keys), httpx.URL(of_nested), forger)


@pytest.fixture
def refuse(caplog: pytest.LogCaptureFixture) -> Iterator[Refuse]:
    """Sends a header to all six operations, which must refuse it. Returns the reasons in the log."""
    caplog.set_level(logging.INFO)

    async def refuse(url: httpx.URL, *sent: bytes) -> set[str]:
        caplog.clear()
        for reply in await asyncio.gather(*(ask(url, *call, *sent) for call in CALLS)):
            assert_refused(reply)
        assert not any(token in caplog.text for token in map(token_in, sent) if len(token) > 20)
        records = [record for record in caplog.records if record.name == "app.http.authorization"]
        assert len(records) == len(CALLS)
        return {str(record.args[0]) for record in records if isinstance(record.args, tuple)}

    with counted_checkouts() as checkouts:
        yield refuse
        assert checkouts == []


def token_in(sent: bytes) -> str:
    return sent.decode("latin-1").removeprefix("Bearer ")


def header_of(token: str) -> bytes:
    return f"Bearer {token}".encode("latin-1")


async def ask(url: httpx.URL, method: str, path: str, content: str, *sent: bytes) -> Reply:
    lines = b"".join(b"Authorization: %s\r\n" % value for value in sent)
    head = f"{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: application/json\r\n"
    return await exchange(
        url, head.encode() + lines + b"Content-Length: %d\r\n\r\n%s" % (len(content), content.encode())
    )


def assert_refused(reply: Reply) -> None:
    status, head, body = reply
    assert status == 401
    assert b"\r\ncontent-type: application/problem+json" in head
    assert b'\r\nwww-authenticate: bearer realm="tasks", error="invalid_token", ' in head
    problem = json.loads(body)
    assert (problem["type"], problem["status"]) == ("urn:problem-type:token-invalid", 401)
    assert problem["detail"] in {"The token is not accepted.", "The token has expired."}


every_algorithm: Final = pytest.mark.parametrize("algorithm", ALGORITHMS)


class TestControl:
    @every_algorithm
    async def test_a_valid_token_is_accepted_and_its_database_connections_are_counted(
        self, services: Services, algorithm: str
    ) -> None:
        token = header_of(signer(algorithm).issue(valid_claims()))

        with counted_checkouts() as checkouts:
            replies = await asyncio.gather(*(ask(services.trusting(algorithm), *call, token) for call in CALLS))

        assert [status for status, _, _ in replies] == [200, 201, 404, 404, 404, 404]
        assert len(checkouts) == len(CALLS)


class TestForged:
    @pytest.mark.parametrize("algorithm", ["HS256", "EdDSA"])
    @pytest.mark.parametrize("forgery", FORGED_CLAIMS.values(), ids=FORGED_CLAIMS)
    async def test_a_token_with_forged_claims_is_refused(
        self, services: Services, refuse: Refuse, forgery: Forgery, algorithm: str
    ) -> None:
        token = forgery.make(signer(algorithm))

        assert await refuse(services.trusting(algorithm), header_of(token)) == forgery.reasons

    @every_algorithm
    @pytest.mark.parametrize("forgery", FORGED_HEADERS.values(), ids=FORGED_HEADERS)
    async def test_a_token_with_a_forged_header_is_refused(
        self, services: Services, refuse: Refuse, forgery: Forgery, algorithm: str
    ) -> None:
        token = forgery.make(signer(algorithm))

        assert await refuse(services.trusting(algorithm), header_of(token)) <= forgery.reasons

    @every_algorithm
    @pytest.mark.parametrize("forgery", FORGED_SIGNATURES.values(), ids=FORGED_SIGNATURES)
    async def test_a_token_with_a_forged_signature_or_form_is_refused(
        self, services: Services, refuse: Refuse, forgery: Forgery, algorithm: str
    ) -> None:
        token = forgery.make(signer(algorithm))

        assert await refuse(services.trusting(algorithm), header_of(token)) <= forgery.reasons

    @pytest.mark.parametrize(("algorithm", "forgery"), SIGNATURES_OF_ONE_ALGORITHM)
    async def test_a_signature_forged_for_one_algorithm_is_refused(
        self, services: Services, refuse: Refuse, algorithm: str, forgery: Forgery
    ) -> None:
        token = forgery.make(signer(algorithm))

        assert await refuse(services.trusting(algorithm), header_of(token)) == {"signature"}

    @pytest.mark.parametrize("make", HEADER_VALUES.values(), ids=HEADER_VALUES)
    async def test_a_valid_token_in_a_malformed_authorization_header_is_refused(
        self, services: Services, refuse: Refuse, make: Callable[[bytes], list[bytes]]
    ) -> None:
        sent = make(header_of(signer("HS256").issue(valid_claims())))

        assert await refuse(services.of_secret, *sent) <= {"several", "malformed"}

    async def test_a_token_with_a_duplicate_nested_user_id_is_refused(self, services: Services, refuse: Refuse) -> None:
        twice = b'{"exp": 4102444800, "user": {"id": "eve", "id": "mia"}}'
        token = sign(head(signer("HS256")), twice, SECRET.encode())

        assert await refuse(services.of_nested, header_of(token)) == {"malformed"}


class TestKeys:
    @pytest.mark.parametrize("make", FORGED_HS256.values(), ids=FORGED_HS256)
    async def test_a_token_signed_with_another_key_than_the_secret_is_refused(
        self, services: Services, refuse: Refuse, make: Callable[[], Signer]
    ) -> None:
        key = make()

        assert await refuse(services.of_secret, header_of(key.issue(valid_claims()))) <= {"algorithm", "signature"}
        assert await refuse(services.of_secret, header_of(key.issue(valid_claims(), alg="HS256"))) == {"signature"}

    @pytest.mark.parametrize("algorithm", PUBLISHED)
    @pytest.mark.parametrize("form", PUBLIC_FORMS.values(), ids=PUBLIC_FORMS)
    async def test_a_token_signed_with_a_public_key_as_secret_is_refused(
        self, services: Services, refuse: Refuse, form: Callable[[Signer], bytes], algorithm: str
    ) -> None:
        key = signer(algorithm)
        confused = Signer("HS256", key.kid, form(key))

        assert await refuse(services.of_keys, header_of(confused.issue(valid_claims()))) == {"unknown key"}
        assert await refuse(services.of_keys, header_of(confused.issue(valid_claims(), alg=algorithm))) == {"signature"}

    @pytest.mark.parametrize("algorithm", PUBLISHED)
    async def test_a_token_with_the_key_id_of_another_key_is_refused(
        self, services: Services, refuse: Refuse, algorithm: str
    ) -> None:
        for other in set(PUBLISHED) - {algorithm}:
            key, named = signer(algorithm), signer(other)

            assert await refuse(services.of_keys, header_of(key.issue(valid_claims(), kid=named.kid))) == {
                "unknown key"
            }
            token = key.issue(valid_claims(), kid=named.kid, alg=other)
            assert await refuse(services.of_keys, header_of(token)) == {"signature"}

    @pytest.mark.parametrize("name", KEY_IDS.values(), ids=KEY_IDS)
    async def test_a_token_with_an_unusable_key_id_is_refused(
        self, services: Services, refuse: Refuse, name: str
    ) -> None:
        token = signer("EdDSA").issue(valid_claims(), kid=name)

        assert await refuse(services.of_keys, header_of(token)) <= {"unknown key", "malformed"}

    async def test_a_token_without_a_key_id_is_refused_if_two_keys_have_its_algorithm(
        self, services: Services, refuse: Refuse
    ) -> None:
        nameless = signer("EdDSA")._replace(kid=None)

        assert await refuse(services.of_keys, header_of(nameless.issue(valid_claims()))) == {"unknown key"}

    async def test_a_token_signed_with_a_published_secret_is_refused(self, services: Services, refuse: Refuse) -> None:
        for key in (OCT, OCT._replace(kid=None)):
            assert await refuse(services.of_keys, header_of(key.issue(valid_claims()))) == {"unknown key"}

    @pytest.mark.parametrize("member", ["jwk", "jku", "x5u", "x5c", "kid"])
    @every_algorithm
    async def test_a_key_in_a_token_header_is_neither_used_nor_fetched(
        self, services: Services, refuse: Refuse, member: str, algorithm: str
    ) -> None:
        key, url = impostor(signer(algorithm)), services.forger.url
        services.forger.keys = [key.jwk | {"kid": url}]
        brought = {"jwk": key.jwk, "jku": url, "x5u": url, "x5c": [b64encode(key.issue({}).encode()).decode()]}
        before = services.forger.connections

        token = key.issue(valid_claims(), **{member: brought.get(member, url)})

        assert await refuse(services.trusting(algorithm), header_of(token)) <= {"signature", "unknown key"}
        assert services.forger.connections == before

    async def test_the_forger_s_server_counts_the_fetch_of_a_key(self, services: Services) -> None:
        before = services.forger.connections

        async with httpx.AsyncClient() as client:
            await client.get(services.forger.url)

        assert services.forger.connections == before + 1


changes: Final = st.lists(
    st.tuples(
        st.sampled_from(["flip", "insert", "delete", "repeat", "replace"]),
        st.floats(0, 1),
        st.integers(1, 40),
        st.binary(min_size=1, max_size=4) | st.sampled_from([b".", b"=", b"-", b"_", b"A", b","]),
    ),
    max_size=3,
)


def mutated(token: bytes, change: str, place: float, length: int, inserted: bytes) -> bytes:
    start = int(place * len(token))
    before, part, after = token[:start], token[start : start + length], token[start + length :]
    return {
        "flip": before + bytes(byte ^ length for byte in part[:1]) + part[1:] + after,
        "insert": before + inserted + part + after,
        "delete": before + after,
        "repeat": before + part + part + after,
        "replace": before + inserted + part[len(inserted) :] + after,
    }[change]


class TestAnyBytes:
    @hostile
    @given(sent=st.binary(max_size=200).map(lambda sent: sent.translate(None, b"\r\n")))
    @example(sent=b"Bearer \xff")
    @example(sent=b"Bearer \0")
    @example(sent=b"Bearer ..")
    @example(sent=b"Bearer e30.e30.e30")
    @example(sent=b"Bearer eyJhbGciOiJub25lIn0.e30.AA")
    @pytest.mark.parametrize("prefix", [b"", b"Bearer "])
    async def test_arbitrary_bytes_are_refused_as_a_token(self, services: Services, sent: bytes, prefix: bytes) -> None:
        for url in (services.of_secret, services.of_keys):
            status, head, _ = await ask(url, *CALLS[0], prefix + sent)

            assert status in {400, 401}
            assert b"\r\ncontent-type: application/problem+json" in head

    @hostile
    @given(changes=changes)
    @example(changes=[])
    @every_algorithm
    async def test_a_changed_token_is_refused(
        self, services: Services, changes: list[tuple[str, float, int, bytes]], algorithm: str
    ) -> None:
        token = changed = signer(algorithm).issue(valid_claims()).encode()
        for change in changes:
            changed = mutated(changed, *change)
        changed = changed.translate(None, b"\r\n\t ")  # these bytes end a header or are stripped from its value

        status, _, _ = await ask(services.trusting(algorithm), *CALLS[0], b"Bearer " + changed)

        assert status in ({200} if changed == token else {400, 401})
