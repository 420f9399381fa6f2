"""What a host may be: a loopback address, which only this machine can reach, or a name that only a cluster resolves."""

import re
from contextlib import suppress
from ipaddress import ip_address
from typing import Final

# A single label does not begin with a digit: resolvers read 2130706433 and 0x7f000001 as 127.0.0.1. With a dot at the
# end it would be a top-level domain, but a name below cluster.local is complete then.
_CLUSTER_NAME: Final = re.compile(r"[a-z][a-z0-9_-]*|([a-z0-9_-]+\.)+svc(\.cluster\.local\.?)?")


def is_loopback(host: str) -> bool:
    """Returns whether `host`, a name or an address without a port, always means this machine.

    The only such name is `localhost` (RFC 6761 section 6.3). DNS may resolve any other name to this machine.
    """
    if host.lower() == "localhost":
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback  # Python 3.11 does not look into ipv4_mapped


def is_host(text: str) -> bool:
    """Returns whether `text` is an address or may be a name, and nothing more, such as a port."""
    with suppress(ValueError):
        return bool(re.fullmatch(r"[\w.-]+", text) or ip_address(text))
    return False


def is_cluster_name(host: str) -> bool:
    """Returns whether `host` is a lower-case name of the form `frontend` or `auth.shop.svc.cluster.local`."""
    return _CLUSTER_NAME.fullmatch(host) is not None
