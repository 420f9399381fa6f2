"""What only programs on this machine can reach."""

from ipaddress import ip_address


def is_loopback(host: str) -> bool:
    """Returns whether `host`, a name or an address without a port, always means this machine.

    Of names only `localhost` does (RFC 6761 section 6.3); any other may be made to lead here.
    """
    if host.lower() == "localhost":
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback  # which Python 3.11 does not do by itself
