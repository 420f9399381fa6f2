"""Loopback addresses, which only programs on this machine can reach."""

from ipaddress import ip_address


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
