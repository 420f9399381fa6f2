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
        *("0.0.0.0", "::", "126.255.255.255", "128.0.0.0", "::2", "fe80::1", "::ffff:192.0.2.1"),
        # Only some programs accept these forms of an address.
        *("127.1", "2130706433", "0x7f000001", "0177.0.0.1", "127.0.0.01", "127.0.0.1.", "127.0.0.1:8000"),
        *("\uff11\uff12\uff17.0.0.1", "127\u30020\u30020\u30021", "[::1]", "::1/128"),
    ],
    ids=ascii,
)
def test_another_name_or_address_is_not_loopback_because_it_may_lead_to_another_machine(host: str) -> None:
    assert not is_loopback(host)
