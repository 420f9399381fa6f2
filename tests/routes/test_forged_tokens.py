"""A forged token is refused with the right reason. It causes no 500 and takes no database connection."""

import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Final

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.issuer import Issuer, key_set
from tests.support import SECRET, exchange, make_settings, serving
from tests.tokens import Signer, claims_of, counted_checkouts, new_signer, signer

EXPECTED: Final = {"auth_issuer": "https://auth.example.com", "auth_audience": "tasks"}
ALGORITHMS: Final = ("HS256", "EdDSA", "ES256", "RS256")  # HS256 uses the secret, the others use keys of an issuer
FAR: Final = 4_102_444_800  # the year 2100

Forge = Callable[[Signer], str]


def valid_claims() -> dict[str, object]:
    return claims_of("mia", iss=EXPECTED["auth_issuer"], aud=EXPECTED["auth_audience"])


def head(key: Signer) -> bytes:
    return json.dumps({"alg": key.algorithm, "kid": key.kid} if key.kid else {"alg": key.algorithm}).encode()


# Each of these functions makes a token that is valid except in one respect.
def claims(*, without: str = "", **changes: object) -> Forge:
    return lambda key: key.issue({name: value for name, value in (valid_claims() | changes).items() if name != without})


def payload(make: Callable[[bytes], bytes]) -> Forge:
    return lambda key: key.sign(head(key), make(json.dumps(valid_claims()).encode()))


def header(**changes: object) -> Forge:
    return lambda key: key.issue(valid_claims(), **changes)


def raw_header(make: Callable[[bytes], bytes]) -> Forge:
    return lambda key: key.sign(make(head(key)), json.dumps(valid_claims()).encode())


def rewritten(make: Callable[[str], str]) -> Forge:
    return lambda key: make(key.issue(valid_claims()))


def with_length(length: int) -> Forge:
    """A token of exactly this length. base64url cannot have every length, so the header varies too."""

    def make(key: Signer) -> str:
        about = (length - len(key.issue(valid_claims()))) * 3 // 4
        fillers = ((number, typ) for number in range(about - 30, about) for typ in ("J", "JW", "JWT"))
        tokens = (key.issue(valid_claims() | {"a": "a" * number}, typ=typ) for number, typ in fillers)
        return next(token for token in tokens if len(token) == length)

    return make


# Forgeries by the reason in the log.
FORGED: Final[dict[str, dict[str, Forge]]] = {
    "no exp": {"no exp": claims(without="exp")},
    "expired": {"exp past": claims(exp=1_000_000_000)},
    "not valid yet": {"nbf future": claims(nbf=FAR), "iat future": claims(iat=FAR)},
    "user id": {
        "no sub": claims(without="sub"),
        "sub empty": claims(sub=""),
        "sub with a line feed at the end": claims(sub="mia\n"),
        "sub with a lone surrogate": claims(sub="mia\ud800"),
        "sub of 129 characters": claims(sub="a" * 129),
        "sub with a slash": claims(sub="eve/../mia"),
        "sub with a digit of another script": claims(sub="mia\u0661"),
    },
    "no iss": {"no iss": claims(without="iss")},
    "issuer": {
        "iss with a slash": claims(iss="https://auth.example.com/"),
        "iss in a list": claims(iss=["https://auth.example.com"]),
    },
    "no aud": {"no aud": claims(without="aud")},
    "audience": {
        "aud cut short": claims(aud="task"),
        "aud of others": claims(aud=["other", "tasks2"]),
        "aud in a nested list": claims(aud=[["tasks"]]),
    },
    "malformed": {
        "exp text": claims(exp="4102444800"),
        "exp true": claims(exp=True),
        "exp negative": claims(exp=-1),
        "exp in the year 10000": claims(exp=253_402_300_800),
        "exp NaN": claims(exp=float("nan")),
        "exp of 5,000 digits": payload(lambda good: good.replace(b'"exp": ', b'"exp": ' + b"9" * 5_000)),
        "nbf null": claims(nbf=None),
        "iat text": claims(iat="0"),
        "sub number": claims(sub=1),
        "sub twice": payload(lambda good: b'{"sub": "eve", ' + good[1:]),
        "sub twice, once escaped": payload(lambda good: good[:-1] + rb', "\u0073ub": "mia"}'),
        "nested claim twice": payload(lambda good: good[:-1] + b', "user": {"id": "mia", "id": "eve"}}'),
        "payload in a list": payload(lambda good: b"[" + good + b"]"),
        "payload cut short": payload(lambda good: good[:-1]),
        "payload not UTF-8": payload(lambda good: good[:-1] + b', "a": "\xff"}'),
        "payload deeply nested": payload(lambda _: b"[" * 2_800 + b"]" * 2_800),
        "kid number": header(kid=1),
        "crit unknown": header(crit=["a"], a=1),
        "b64 false": header(b64=False, crit=["b64"]),
        "header in a list": raw_header(lambda good: b"[" + good + b"]"),
        "header deeply nested": raw_header(lambda _: b"[" * 2_800 + b"]" * 2_800),
        "header with 4,500 digits": raw_header(lambda good: good[:-1] + b', "a": ' + b"9" * 4_500 + b"}"),
        "signature empty": rewritten(lambda token: token.rpartition(".")[0] + "."),
        "with padding": rewritten(lambda token: token + "="),
        "with a changed unused bit": rewritten(lambda token: token[:-1] + chr(ord(token[-1]) + 1)),
        "with a space within": rewritten(lambda token: f"{token[:-3]} {token[-3:]}"),
        "in five parts, like an encrypted token": rewritten(lambda token: f"{token}.e30.e30"),
        "with a detached payload": rewritten(lambda token: "..".join(token.split(".")[::2])),
        "too long": with_length(8_193),
    },
    "algorithm": {
        **{f"alg {alg}": header(alg=alg) for alg in ("none", "nOnE", "HS512", "PS256", None)},
        "alg in a list": lambda key: key.issue(valid_claims(), alg=[key.algorithm]),
        "alg in lower case": lambda key: key.issue(valid_claims(), alg=key.algorithm.lower()),
        "alg of another kind of key": lambda key: key.issue(
            valid_claims(), alg=ALGORITHMS[ALGORITHMS.index(key.algorithm) - 1]
        ),
        "alg twice, then none": raw_header(lambda good: good[:-1] + b', "alg": "none"}'),
        "no alg": raw_header(lambda _: b"{}"),
    },
    "signature": {
        "of another key": lambda key: new_signer(key.algorithm, key.kid).issue(valid_claims()),
        "of other claims": lambda key: (
            key.issue(valid_claims()).rpartition(".")[0] + "." + key.issue({"sub": "eve"}).rpartition(".")[2]
        ),
        "all zero": rewritten(lambda token: f"{token.rpartition('.')[0]}.{'A' * len(token.rpartition('.')[2])}"),
    },
}
every_algorithm: Final = pytest.mark.parametrize("algorithm", ALGORITHMS)
Refuse = Callable[..., Awaitable[str]]


@pytest.fixture(scope="module")
async def urls(dsn: str) -> AsyncIterator[dict[str, httpx.URL]]:
    """The service that trusts the keys of each algorithm."""
    async with (
        Issuer(key_set(*(signer(algorithm).jwk for algorithm in ALGORITHMS[1:]))) as issuer,
        serving(make_settings(dsn, auth_jwt_secret=SECRET, **EXPECTED)) as of_secret,
        serving(make_settings(dsn, auth_jwks_url=issuer.url, **EXPECTED)) as of_keys,
    ):
        yield {name: httpx.URL(of_secret if name == "HS256" else of_keys) for name in ALGORITHMS}


async def ask(url: httpx.URL, *sent: bytes) -> tuple[int, bytes, bytes]:
    """List Mia's tasks with these Authorization headers. httpx would refuse some of them."""
    lines = b"".join(b"Authorization: %s\r\n" % value for value in sent)
    return await exchange(url, b"GET /api/mia/tasks HTTP/1.1\r\nHost: a\r\nConnection: close\r\n%s\r\n" % lines)


def header_of(token: str) -> bytes:
    return f"Bearer {token}".encode("latin-1")


@pytest.fixture
def refuse(caplog: pytest.LogCaptureFixture) -> Iterator[Refuse]:
    """Sends a request that must be refused without a database connection. Returns the reason in the log."""
    caplog.set_level(logging.INFO)

    async def refuse(url: httpx.URL, *sent: bytes) -> str:
        caplog.clear()
        status, head, body = await ask(url, *sent)
        assert (status, json.loads(body)["type"]) == (401, "urn:problem-type:token-invalid")
        assert b'\r\nwww-authenticate: bearer realm="tasks", error="invalid_token", ' in head
        [reason] = [record.reason for record in caplog.records if hasattr(record, "reason")]
        assert isinstance(reason, str)
        return reason

    with counted_checkouts() as checkouts:
        yield refuse
        assert checkouts == []


class TestControl:
    @every_algorithm
    @pytest.mark.parametrize("forge", [claims(), with_length(8_192)], ids=["short", "longest"])
    async def test_a_valid_token_is_accepted_and_its_database_connection_is_counted(
        self, urls: dict[str, httpx.URL], algorithm: str, forge: Forge
    ) -> None:
        with counted_checkouts() as checkouts:
            status, _, _ = await ask(urls[algorithm], header_of(forge(signer(algorithm))))

        assert (status, len(checkouts)) == (200, 1)

    async def test_a_token_may_have_either_name_of_ed25519_whichever_of_them_its_key_has(self, dsn: str) -> None:
        key, names = signer("EdDSA"), ("EdDSA", "Ed25519")
        keys = key_set(*(key.jwk | {"kid": f"of {name}", "alg": name} for name in (None, *names)))
        async with Issuer(keys) as issuer, serving(make_settings(dsn, auth_jwks_url=issuer.url, **EXPECTED)) as url:
            for of_key in (None, *names):
                good, new = [key.issue(valid_claims(), alg=name, kid=f"of {of_key}") for name in names]
                sent = [header_of(token) for token in (good, new, new[:-9] + "A" * 9)]

                assert [(await ask(httpx.URL(url), token))[0] for token in sent] == [200, 200, 401]


class TestForged:
    @every_algorithm
    @pytest.mark.parametrize(
        ("reason", "forge"),
        [pytest.param(reason, forge, id=name) for reason, made in FORGED.items() for name, forge in made.items()],
    )
    async def test_a_token_that_is_wrong_in_one_respect_is_refused_for_this_reason(
        self, urls: dict[str, httpx.URL], refuse: Refuse, reason: str, forge: Forge, algorithm: str
    ) -> None:
        if reason == "algorithm" and algorithm != "HS256":  # a key of an issuer is found by its algorithm
            reason = "unknown key"

        assert await refuse(urls[algorithm], header_of(forge(signer(algorithm)))) == reason

    @pytest.mark.parametrize(
        ("reason", "make"),
        [
            ("malformed", lambda _: [b"Bearer"]),
            ("malformed", lambda good: [good + b"\xff\xfe"]),
            ("malformed", lambda good: [good.replace(b" ", b" \t")]),
            ("several", lambda good: [good, good]),
            ("several", lambda good: [b"Basic bWlhOmE=", good]),
        ],
    )
    async def test_a_valid_token_in_a_malformed_authorization_header_is_refused(
        self, urls: dict[str, httpx.URL], refuse: Refuse, reason: str, make: Callable[[bytes], list[bytes]]
    ) -> None:
        sent = make(header_of(signer("HS256").issue(valid_claims())))

        assert await refuse(urls["HS256"], *sent) == reason


class TestKeys:
    @pytest.mark.parametrize("algorithm", ALGORITHMS[1:])
    async def test_a_token_signed_with_a_public_key_as_secret_is_refused(
        self, urls: dict[str, httpx.URL], refuse: Refuse, algorithm: str
    ) -> None:
        key = signer(algorithm)
        pem = key.public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        confused = Signer("HS256", key.kid, pem)

        assert await refuse(urls["EdDSA"], header_of(confused.issue(valid_claims()))) == "unknown key"
        assert await refuse(urls["EdDSA"], header_of(confused.issue(valid_claims(), alg=algorithm))) == "signature"

    @every_algorithm
    async def test_a_key_in_a_token_header_is_neither_used_nor_fetched(
        self, urls: dict[str, httpx.URL], refuse: Refuse, algorithm: str
    ) -> None:
        key = new_signer(algorithm, signer(algorithm).kid)
        async with Issuer(key_set(key.jwk)) as forger:
            forged = key.issue(valid_claims(), jwk=key.jwk, jku=forger.url, x5u=forger.url, x5c=["Y2VydA=="])

            assert await refuse(urls[algorithm], header_of(forged)) == "signature"
            assert forger.requests == []
