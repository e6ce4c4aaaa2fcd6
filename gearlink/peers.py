"""Who is at the other end of a connection, when proxies may stand in between.

It owns the reading of `X-Forwarded-For`, and promises that nobody can lie about an address: the header is believed only
as far as trusted proxies wrote it, from the right to the left. It does no I/O and knows nothing of limits or accounts.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final

PEER_EXTENSION: Final = "gearlink.peer"  # where in an ASGI scope's extensions the listener puts the `Peer` of a request
_FORWARDING = (b"x-forwarded-", b"forwarded", b"x-real-ip", b"via")


@dataclass(frozen=True, slots=True)
class Peer:
    """`address` is an IP as text. `direct`: it is the TCP peer, and no header says that something stands in between."""

    address: str
    direct: bool


@lru_cache(maxsize=4096)  # asked for every request of a connection
def canonical(text: str) -> str:
    """The one spelling of an IP address: no zone, and IPv4 that was mapped into IPv6 as IPv4. Raises ValueError."""
    return str(_parse(text.partition("%")[0]))


@lru_cache(maxsize=4096)
def network_of(address: str) -> str:
    """What limits count as one address: an IPv4 address, or the whole /64 that an IPv6 host is given (RFC 6177).

    A text that is no address is returned as it is.
    """
    try:
        parsed = _parse(address.partition("%")[0])
    except ValueError:
        return address
    return str(parsed if isinstance(parsed, IPv4Address) else IPv6Address(int(parsed) >> 64 << 64))


def _parse(text: str) -> IPv4Address | IPv6Address:
    address = ip_address(text)
    return getattr(address, "ipv4_mapped", None) or address


def _parse_hop(entry: str) -> IPv4Address | IPv6Address | None:
    """One entry of `X-Forwarded-For`, which some proxies write with a port; None where it is no address."""
    text = entry.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return None if "%" in text else _parse(text)
    except ValueError:
        return None


class Proxies:
    """The proxies that are believed: addresses or networks, e.g. `127.0.0.1`, `10.0.0.0/8`. Raises ValueError."""

    def __init__(self, trusted: Iterable[str]) -> None:
        self._networks = [ip_network(network, strict=False) for network in trusted]

    def trusts(self, address: str) -> bool:
        return bool(self._networks) and self._trusts(_parse(address))

    def _trusts(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in network for network in self._networks)

    def peer(self, address: str, headers: Iterable[tuple[bytes, bytes]]) -> Peer:
        """Who sent a request with `headers` (names in lower case) over a connection from `address` (canonical).

        The answer is the rightmost forwarded address that is not a trusted proxy itself; where the chain ends early or
        in something unreadable, the last proxy that could be read.
        """
        forwarding = [(name, value) for name, value in headers if name.startswith(_FORWARDING)]
        if not forwarding:
            return Peer(address, direct=True)
        if self.trusts(address):
            chain = b",".join(value for name, value in forwarding if name == b"x-forwarded-for").decode("latin-1")
            for entry in reversed(chain.split(",")):
                hop = _parse_hop(entry)
                if hop is None:
                    break
                address = str(hop)
                if not self._trusts(hop):
                    break
        return Peer(address, direct=False)
