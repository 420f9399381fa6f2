"""For any input, each parser returns a valid result or raises its documented error.

`FUZZ_EXAMPLES` is the number of inputs for each test; `make fuzz` uses many.
"""

import hmac
import json
import os
import secrets
import ssl
from base64 import urlsafe_b64encode
from collections.abc import Coroutine
from datetime import UTC, datetime
from inspect import signature
from time import time
from typing import Any, Final, get_args
from uuid import UUID

import pytest
from asyncpg import connect_utils
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from jwt.algorithms import OKPAlgorithm
from starlette.requests import Request

from app.core.database.dsn import parse_dsn
from app.core.errors import InvalidRequestError, TokenInvalidError
from app.core.security.jwks import _read_keys
from app.core.security.tokens import SharedSecret, TokenVerifier
from app.models.task import USER_ID_PATTERN
from app.routes.deps import read_conditions
from app.schemas.task import timestamp
from app.schemas.words import Sort
from app.services.cursors import _with_checksum, decode_cursor
from app.services.tasks import SORT_KEYS

SECRET: Final = secrets.token_hex()
PASSWORD: Final = secrets.token_hex()
SCOPE: Final = "('ada', {})"

EXAMPLES: Final = int(os.environ.get("FUZZ_EXAMPLES", "50"))
fuzzed: Final = settings(
    max_examples=EXAMPLES,
    deadline=None,  # the machine may be busy
    database=None,  # a failure is printed, and thousands of successes need no files
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
fuzzed_less: Final = settings(fuzzed, max_examples=max(EXAMPLES // 10, 50))  # one input takes ten times as long

any_text: Final = st.text(st.characters(exclude_categories=()), max_size=120)  # NUL and lone surrogates too
any_json: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=6,
)
any_bytes: Final = st.binary(max_size=120)
# The server accepts all bytes in a header value except those that end it.
any_value: Final = any_bytes.map(lambda value: value.translate(None, b"\r\n\0"))
moments: Final = st.datetimes(timezones=st.just(UTC))
keys: Final = any_bytes | (moments.map(timestamp) | any_text).map(lambda text: text.encode(errors="replace"))


def outcome(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Returns the result of a coroutine that never waits, and so needs no event loop."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError(coroutine)


class TestCursor:
    @fuzzed
    @given(sort=st.sampled_from(get_args(Sort)), id_=st.binary(min_size=12, max_size=16), key=keys)
    def test_a_cursor_with_a_valid_checksum_is_a_position_or_refused(self, sort: Sort, id_: bytes, key: bytes) -> None:
        try:
            cursor = _with_checksum(id_ + key, sort, SCOPE)
            position = decode_cursor(cursor, sort, SCOPE, SORT_KEYS[sort.removeprefix("-")])
        except InvalidRequestError:
            return

        assert position.id == UUID(bytes=(id_ + key)[:16])
        assert isinstance(position.key, str)


def tag_of(version: datetime) -> str:
    return f'"{timestamp(version)}"'


# Entity tags, most of them with a few characters changed.
like_tags: Final = st.builds(
    lambda tag, at, put: tag[:at] + put + tag[at + len(put) :],
    moments.map(tag_of),
    st.integers(0, 30),
    st.sampled_from(["", "W/", "0", "9", "60", "-00", "T24", "Z", "z", "+", " ", '"', ",", "\n", "\u0663", "0000-"]),
)


condition_names: Final = st.sampled_from([b"if-match", b"if-none-match"])
tag_lists: Final = any_value | like_tags.map(str.encode) | st.sampled_from([b"*", b"", b",", b"*, *", b'W/"', b'"a,b"'])


class TestEntityTag:
    @fuzzed
    @given(sent=st.lists(st.tuples(condition_names, tag_lists), max_size=4))
    def test_any_condition_names_only_versions_whose_tags_were_sent(self, sent: list[tuple[bytes, bytes]]) -> None:
        conditions = outcome(read_conditions(Request({"type": "http", "method": "PUT", "headers": sent})))

        for version in (*(conditions.match or ()), *(conditions.none_match or ())):
            assert any(tag_of(version).encode() in value for _, value in sent)


odd: Final = st.text("ab1:@/?&=%[].,-\0\xe9\u0663 ", max_size=6)
any_dsn: Final = any_text | st.tuples(
    st.sampled_from(["postgresql", "postgres", "postgresql+asyncpg", "postgresql+psycopg2", "mysql"]) | odd,
    st.just("://"),
    st.sampled_from([f"u:{PASSWORD}@", f"{PASSWORD}a@", f"u:{PASSWORD}/@?", ""]) | odd,
    st.sampled_from(["localhost", "", "a.neon.tech", "A.NEON.TECH", "[::1]", "]", "a,b:1,[::1]", "%2Frun"]) | odd,
    st.sampled_from(["", ":5432", ":65536", ":-1", ":\u0663", ":" + "9" * 5_000]) | odd,
    st.sampled_from(["/d", "", "/"]) | odd,
    st.sampled_from(["", "?sslmode=disable", "?sslmode=verify-full", "?sslmode=nope", "?sslmode=a&sslmode=b"]) | odd,
    st.sampled_from(["", "&channel_binding=require", "&host=a.neon.tech&host=b", "&port=1", "&port=a", "&a"]) | odd,
).map("".join)


def as_the_driver_reads(arguments: dict[str, Any]) -> None:
    """Raises what the driver would raise when it connects."""
    read: Any = connect_utils._parse_connect_dsn_and_args  # type: ignore[attr-defined]  # noqa: SLF001  # its parser
    read(**{name: arguments.get(name) for name in signature(read).parameters})


class TestDatabaseUrl:
    @pytest.fixture(autouse=True)
    def _one_tls_context(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Reading the certificates of the machine takes longer than everything else."""
        context = ssl.create_default_context()
        monkeypatch.setattr(ssl, "create_default_context", lambda cafile: context)  # noqa: ARG005  # called by keyword

    @fuzzed
    @example(dsn=f"postgresql://u:a@{PASSWORD}?a=b")
    @example(dsn=f"postgresql://u:a@?{PASSWORD}@h/d?sslmode=nope")
    @given(dsn=any_dsn)
    def test_any_text_is_a_database_url_or_refused_with_a_message_without_the_password(self, dsn: str) -> None:
        refusal = None
        try:
            as_the_driver_reads(parse_dsn(dsn))
        except ValueError as error:
            refusal = str(error)

        assert refusal is None or (refusal.startswith(("must look like ", "has ", "is ")) and PASSWORD not in refusal)


VERIFIER: Final = TokenVerifier(
    SharedSecret(SECRET), user_id_pattern=USER_ID_PATTERN, user_id_claim="sub", issuer=None, audience=None, leeway=0
)
token_headers: Final = st.fixed_dictionaries(
    {},
    optional={
        name: st.sampled_from(["HS256", "none", "RS256", "JWT", ["exp"]]) | any_json
        for name in ("alg", "typ", "kid", "crit", "b64", "jwk", "jku", "zip")
    },
)
dates: Final = st.sampled_from([0, 2**31, 2**33, 2**63, 10**400, "99999999999", True]) | st.floats()
token_claims: Final = st.fixed_dictionaries(
    {},
    optional={"sub": st.sampled_from(["ada", ""]) | any_json, "exp": dates | any_json}
    | dict.fromkeys(("iss", "aud", "nbf", "iat", "jti"), dates | any_json),
)


def segment(part: object) -> str:
    content = part if isinstance(part, bytes) else json.dumps(part).encode()
    return urlsafe_b64encode(content).rstrip(b"=").decode()


def owner(token: str) -> str | None:
    """Returns the user, or None if the token is refused."""
    try:
        user_id: str = outcome(VERIFIER.user_id_of(token))
    except TokenInvalidError:
        return None
    return user_id


class TestToken:
    @fuzzed_less
    @given(
        raw=any_bytes,
        header=any_bytes | any_json | token_headers,
        claims=any_bytes | any_json | token_claims,
        signature=any_bytes,
    )
    def test_a_signed_token_names_its_user_or_is_refused_and_any_other_is_refused(
        self, raw: bytes, header: object, claims: object, signature: bytes
    ) -> None:
        text = f"{segment(header)}.{segment(claims)}"
        user_id = owner(f"{text}.{segment(hmac.digest(SECRET.encode(), text.encode(), 'sha256'))}")

        assert owner(raw.decode("latin-1")) is None  # as Starlette reads headers
        assert owner(f"{text}.{segment(signature)}") is None
        assert user_id is None or isinstance(claims, dict)
        assert user_id is None or (claims["sub"] == user_id and claims["exp"] > time() - 1)  # type: ignore[index]


GOOD_KEY: Final = OKPAlgorithm.to_jwk(Ed25519PrivateKey.generate().public_key(), as_dict=True)
key_members: Final = {
    name: st.sampled_from(["OKP", "EC", "RSA", "Ed25519", "P-256", "sig", "verify"]) | any_json | any_bytes.map(segment)
    for name in ("kty", "crv", "use", "key_ops", "kid", "alg", "x", "y", "n", "e", "d", "k")
}
any_key: Final = st.fixed_dictionaries({}, optional=key_members)
any_keys: Final = st.lists(any_key | any_key.map(lambda members: GOOD_KEY | members) | any_json, max_size=4)
key_sets: Final = st.fixed_dictionaries({"keys": any_keys | any_json})


class TestKeySet:
    @fuzzed_less
    @example(content=b'{"keys": [{"crv": []}]}')
    @given(content=any_bytes | (any_json | key_sets).map(json.dumps).map(str.encode))
    def test_any_document_has_usable_keys_or_is_refused(self, content: bytes) -> None:
        try:
            keys = _read_keys(content)
        except ValueError:
            return

        assert all(isinstance(key.kid, str | None) for key in keys)
        assert {key.algorithm for key in keys} <= {"EdDSA", "Ed25519", "ES256", "RS256"}
