"""The client of an issuer's key set: how a key is found, and when the set is fetched."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest

from app.core.errors import IssuerUnavailableError
from app.core.logging import log_config
from app.core.security.jwks import JwksClient, Timing
from app.core.security.tokens import Key
from tests.issuer import Answer, Held, Issuer, hang, key_set, raw, reply
from tests.support import until
from tests.tokens import new_signer

OLD: Final = new_signer("EdDSA", "old")
NEW: Final = new_signer("EdDSA", "new")
UNNAMED: Final = OLD._replace(kid=None)
FOR_OLD: Final = {"kid": "old", "alg": "EdDSA"}
FOR_NEW: Final = {"kid": "new", "alg": "EdDSA"}
NAMELESS: Final = {"alg": "EdDSA"}
UNKNOWN: Final = {"kid": "unknown", "alg": "EdDSA"}
OFTEN: Final = Timing(refresh=0.01, retry=0.01, first_retry=0.01)


@asynccontextmanager
async def fetched(issuer: Issuer, timing: Timing | None = None) -> AsyncIterator[JwksClient]:
    """A client that has fetched the keys."""
    async with JwksClient(issuer.url, timing) as keys:
        await until(lambda: keys.ready)
        yield keys


async def until_asked_again(issuer: Issuer) -> None:
    """Wait for two requests: the second one shows that the client has read the answer to the first."""
    asked = len(issuer.requests)
    await until(lambda: len(issuer.requests) >= asked + 2)


def running_methods() -> list[str]:
    """The methods of JwksClient that run as tasks."""
    names = [getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()]
    return [name for name in names if name.startswith("JwksClient.")]


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    """An issuer that publishes the key OLD."""
    async with Issuer(key_set(OLD.jwk)) as issuer:
        yield issuer


class TestFind:
    async def test_a_key_is_found_only_with_its_own_algorithm(self, issuer: Issuer) -> None:
        """The token does not choose the algorithm. The three keys have the same name."""
        algorithms = ("EdDSA", "ES256", "RS256")
        issuer.answer = key_set(*(new_signer(algorithm, "old").jwk for algorithm in algorithms))

        async with fetched(issuer) as keys:
            for algorithm in (*algorithms, "Ed25519"):
                key = await keys.find({"kid": "old", "alg": algorithm})
                assert key
                assert key.algorithm == algorithm
            others: list[Any] = ["HS256", "none", "PS256", "ES384", "ESP256", "Ed448", "", "eddsa", None, ["EdDSA"], {}]
            for other in others:
                assert await keys.find({"kid": "old", "alg": other}) is None
                assert await keys.find({"alg": other}) is None

    @pytest.mark.parametrize(
        ("members", "header", "found"),
        [
            pytest.param([OLD, NEW], FOR_NEW, NEW, id="a key by its name"),
            pytest.param([OLD], NAMELESS, OLD, id="the only key without a name"),
            pytest.param([UNNAMED], NAMELESS, UNNAMED, id="the only key, which has no name"),
            pytest.param([UNNAMED], FOR_OLD, None, id="no unnamed key by a name"),
            pytest.param([OLD, NEW], NAMELESS, None, id="neither of two keys without a name"),
            pytest.param([OLD, NEW._replace(kid="old")], FOR_OLD, OLD, id="the first of two keys with one name"),
        ],
    )
    async def test_a_header_finds_only_the_key_that_it_identifies(
        self, issuer: Issuer, members: list[Any], header: dict[str, str], found: Any
    ) -> None:
        issuer.answer = key_set(*(member.jwk for member in members))

        async with fetched(issuer) as keys:
            assert await keys.find(header) == (found and Key("EdDSA", found.public_key, found.kid))


class TestConcurrentSearches:
    async def test_concurrent_searches_share_one_request_that_outlives_the_first_search(self, issuer: Issuer) -> None:
        async with JwksClient(issuer.url) as keys:
            for number, (key, header) in enumerate(((OLD, FOR_OLD), (NEW, FOR_NEW)), 1):
                issuer.answer = held = Held(key_set(key.jwk))
                first, *others = [asyncio.create_task(keys.find(header)) for _ in range(50)]
                await until(lambda: len(issuer.requests) == number)  # noqa: B023  # called in this iteration only
                first.cancel()
                await asyncio.wait([first])
                held.release()
                assert all(await asyncio.gather(*others))
                assert await keys.find(header)
                assert len(issuer.requests) == number

    async def test_a_search_waits_for_a_running_fetch_only_if_its_key_is_unknown(self, issuer: Issuer) -> None:
        async with fetched(issuer, Timing(refresh=0.01)) as keys:
            await keys.find(UNKNOWN)  # the only search of this interval that may start a fetch
            issuer.answer = held = Held(key_set(NEW.jwk))
            await until(lambda: held.waiting)
            search = asyncio.create_task(keys.find(FOR_NEW))
            assert await keys.find(FOR_OLD)
            assert not search.done()
            held.release()
            assert await search


class TestUnknownKeys:
    @pytest.mark.parametrize("answer", [key_set(OLD.jwk), reply(b"", "500 Oops")], ids=["success", "failure"])
    @pytest.mark.parametrize(("retry", "requests"), [(600, 2), (0, 6)])
    async def test_searches_for_unknown_keys_send_one_request_in_each_retry_interval(
        self, issuer: Issuer, answer: Answer, retry: float, requests: int
    ) -> None:
        async with fetched(issuer, Timing(retry=retry)) as keys:
            issuer.answer = answer
            for header in (UNKNOWN, {"kid": "other", "alg": "EdDSA"}, {"alg": "RS256"}, {"kid": "old"}, {}):
                assert await keys.find(header) is None

        assert len(issuer.requests) == requests


class TestBackground:
    async def test_keys_have_an_age_as_soon_as_they_have_been_fetched(self, issuer: Issuer) -> None:
        good, issuer.answer = issuer.answer, reply(b"", "500 Oops")
        async with JwksClient(issuer.url, Timing(first_retry=0.01)) as keys:
            await until_asked_again(issuer)
            assert keys.age is None
            issuer.answer = good
            await until(lambda: keys.ready)

            assert keys.age is not None
            assert 0 <= keys.age < 60

    async def test_keys_are_fetched_every_5_minutes_after_a_failure_every_30_seconds_and_first_every_2_seconds(
        self, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The intervals are those of docs/auth.md. Nothing waits for them here."""
        good, bad = issuer.answer, reply(b"", "500 Oops")
        answers = iter([bad, key_set(), good, bad, bad, good, hang])
        intervals: list[float] = []
        sleep = asyncio.sleep

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await next(answers)(reader, writer)

        async def record(seconds: float) -> None:
            if seconds >= 1:
                intervals.append(seconds)
            await sleep(0)

        issuer.answer = answer
        monkeypatch.setattr(asyncio, "sleep", record)
        async with JwksClient(issuer.url):
            await until(lambda: len(issuer.requests) == 7)

        assert intervals == [2, 2, 300, 30, 30, 300]

    @pytest.mark.parametrize(
        ("members", "generation"),
        [([OLD.jwk | {"name": "x"}], 1), ([NEW.jwk | {"kid": "old"}], 2), ([OLD.jwk | {"kid": "new"}], 2), ([], 2)],
    )
    async def test_the_generation_changes_once_with_the_keys(
        self, issuer: Issuer, members: list[dict[str, Any]], generation: int
    ) -> None:
        async with fetched(issuer, OFTEN) as keys:
            issuer.answer = key_set(*members)
            await until_asked_again(issuer)
            await until_asked_again(issuer)
            assert (keys.generation, keys.ready) == (generation, True)

    async def test_keys_stay_in_use_while_the_issuer_is_down(self, issuer: Issuer) -> None:
        async with fetched(issuer, OFTEN) as keys:
            issuer.stop()
            assert [await keys.find(UNKNOWN) for _ in range(20)] == [None] * 20
            assert await keys.find(FOR_OLD)


class TestLog:
    async def test_an_outage_logs_one_warning_for_each_reason_and_one_line_at_its_end(
        self, issuer: Issuer, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "app")
        async with fetched(issuer, OFTEN):
            for answer in (reply(b"", "500 Oops"), raw(b"SSH-2.0"), raw(b""), key_set(OLD.jwk)):
                issuer.answer = answer
                await until_asked_again(issuer)

        assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
            ("INFO", "keys of the issuer fetched"),
            ("WARNING", "keys of the issuer not fetched: status 500"),
            ("WARNING", "keys of the issuer not fetched: RemoteProtocolError"),
            ("INFO", "keys of the issuer fetched"),
        ]

    async def test_the_log_contains_neither_the_query_of_the_url_nor_the_reply(
        self, issuer: Issuer, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The query may contain an API key."""
        config = log_config("debug", "json")
        for name, logger in config["loggers"].items():
            caplog.set_level(logger["level"], name)
        caplog.set_level(config["root"]["level"])
        issuer.answer = reply(b'{"keys": []}', "200 s3cret", s3cret="s3cret")
        async with JwksClient(f"{issuer.url}?apikey=s3cret"):
            await until(lambda: "keys of the issuer fetched" in caplog.text)

        assert "apikey=s3cret" in issuer.requests[0]
        assert "s3cret" not in caplog.text

    async def test_the_log_names_the_host_to_which_there_is_no_connection(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with JwksClient("http://127.0.0.1:1/jwks?apikey=s3cret"):
            await until(lambda: "not fetched: AUTH_JWKS_URL: there is no connection to 127.0.0.1: " in caplog.text)

        assert "s3cret" not in caplog.text


async def keep_open(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers with a key, and leaves it to the client to close the connection."""
    await reply(json.dumps({"keys": [OLD.jwk]}).encode(), connection="keep-alive")(reader, writer)
    await reader.read()


class TestClose:
    @pytest.mark.parametrize("answer", [keep_open, hang])
    async def test_closing_ends_all_tasks_and_connections(self, issuer: Issuer, answer: Answer) -> None:
        issuer.answer = answer
        async with JwksClient(issuer.url) as keys:
            await until(lambda: keys.ready or (issuer.requests and answer is hang))
            assert "JwksClient._keep_fresh" in running_methods()
            assert issuer.connections == 1

        assert running_methods() == []
        await until(lambda: issuer.connections == 0)

    async def test_closing_before_the_first_fetch_sends_no_request(self, issuer: Issuer) -> None:
        async with JwksClient(issuer.url):
            pass

        assert (running_methods(), issuer.requests) == ([], [])

    async def test_closing_fails_a_search_that_waits_for_the_first_keys(self, issuer: Issuer) -> None:
        issuer.answer = hang
        async with JwksClient(issuer.url) as keys:
            search = asyncio.create_task(keys.find(FOR_OLD))
            await until(lambda: issuer.requests)

        with pytest.raises(IssuerUnavailableError):
            await search
