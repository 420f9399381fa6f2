"""Which names and addresses lead to this machine, whatever a name server answers."""

import pytest

from app.core.security.loopback import is_loopback


@pytest.mark.parametrize(
    "host", ["localhost", "LocalHost", "127.0.0.0", "127.255.255.255", "::1", "0:0:0:0:0:0:0:1", "::ffff:127.0.0.1"]
)
def test_localhost_and_loopback_addresses_are_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    [
        *("", "localhost.", " localhost", "localhost\n", "localhost:8000", "evil.localhost", "localhost.evil.example"),
        "localho\u017ft",  # lower() keeps this character, casefold() would change it
        *("ip6-localhost", "127.0.0.1.evil.example"),
    ],
    ids=ascii,
)
def test_another_name_is_not_loopback_because_it_may_resolve_to_any_address(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.1", "126.255.255.255", "128.0.0.0", "::2", "fe80::1", "::ffff:192.0.2.1"]
)
def test_another_address_is_not_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    "host",
    [
        *("127.1", "2130706433", "0x7f000001", "0177.0.0.1", "127.0.0.01", "127.0.0.1.", "127.0.0.1:8000"),
        *("127.0.0.256", "\uff11\uff12\uff17.0.0.1", "127\u30020\u30020\u30021", "[::1]", "::1/128"),
    ],
    ids=ascii,
)
def test_an_address_in_a_form_that_only_some_programs_accept_is_not_loopback(host: str) -> None:
    assert not is_loopback(host)
