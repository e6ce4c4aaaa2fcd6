"""Opens the port and reads the certificate, and says in one clear line why that cannot be.

It owns the words that an operator reads when the server cannot listen. It knows nothing of connections.
"""

import errno
import ssl

import trio

from gearlink.errors import ExitStatus, Fatal


def tls_context(certificate: str, key: str) -> ssl.SSLContext:
    """TLS 1.3 alone, offering HTTP/2 and HTTP/1.1, from two PEM files. Raises OSError (SSLError is one)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2", "http/1.1"])
    context.load_cert_chain(certificate, key)
    return context


async def open_tcp_listeners(address: str, *, backlog: int = 4096) -> list[trio.SocketListener]:
    """Listens on `HOST:PORT`, `[IPV6]:PORT` or `:PORT` (every address). Raises Fatal with a line for the operator."""
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not (colon and port.isascii() and port.isdigit() and int(port) < 65536) or (":" in host and not bracketed):
        raise Fatal(ExitStatus.ADDRESS, f"{address} is no address to listen on: write HOST:PORT, or [IPV6]:PORT")
    try:
        return await trio.open_tcp_listeners(int(port), host=host.strip("[]") or None, backlog=backlog)
    except (OSError, UnicodeError) as trouble:  # an impossible name is a UnicodeError
        raise _fatal(address, trouble) from trouble


def _fatal(address: str, trouble: OSError | UnicodeError) -> Fatal:
    number = trouble.errno if isinstance(trouble, OSError) else None
    if number == errno.EADDRINUSE:
        line = f"{address} is in use by another program: stop that one, or listen on another port"
        return Fatal(ExitStatus.ADDRESS, line)
    if number in (errno.EACCES, errno.EPERM):
        line = f"{address} may not be opened by this user: choose a port above 1023, or grant CAP_NET_BIND_SERVICE"
        return Fatal(ExitStatus.NO_RIGHTS, line)
    return Fatal(ExitStatus.ADDRESS, f"{address} is no address of this machine: listen on one that it has")
