"""The shapes of text settings: addresses, URLs, origins, networks, paths, tokens.

Each function takes what an operator wrote and returns it cleaned, or raises BadValue with the problem and a remedy.
Neither ever repeats the text itself, so a secret that landed in the wrong place is not printed. This module opens no
file, resolves no name and knows no setting.
"""

import ipaddress
import re
import unicodedata
from urllib.parse import SplitResult, urlsplit

TEXT_CHARS_MAX = 4096

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
_PORT = re.compile(r"[0-9]{1,5}")
_BEARER = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_DEFAULT_PORTS = {"http": 80, "https": 443}


class BadValue(ValueError):
    """A value that a setting cannot take: `problem` continues the setting's name, `remedy` is an order."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}; {remedy}")
        self.problem = problem
        self.remedy = remedy


def plain_text(text: str) -> str:
    """Any one-line text. Raises BadValue for control characters, broken encoding and more than TEXT_CHARS_MAX."""
    if len(text) > TEXT_CHARS_MAX:
        raise BadValue(f"is longer than {TEXT_CHARS_MAX} characters", "shorten it")
    for character in text:
        if unicodedata.category(character) == "Cc":
            raise BadValue("holds a control character", "write it on one line, without tabs")
        if unicodedata.category(character) == "Cs":  # how Python shows environment bytes that are not UTF-8
            raise BadValue("is not valid UTF-8", "write it in UTF-8")
    return text


def split_address(text: str) -> tuple[str, int]:
    """`HOST:PORT` or `[IPV6]:PORT` as (host without brackets, port 0..65535). Raises BadValue."""
    remedy = "write HOST:PORT, for example 127.0.0.1:8080 or [::1]:8080"
    host, colon, port = text.rpartition(":")
    if not colon or not _PORT.fullmatch(port) or int(port) > 65535:
        raise BadValue("has no port from 0 to 65535 at its end", remedy)
    if not host:
        raise BadValue("names no host", f"write 0.0.0.0:{port} to listen on every address of this machine")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not _is_ip(host, version=6):
            raise BadValue("holds no IPv6 address between its brackets", remedy)
    elif ":" in host:
        raise BadValue("holds an IPv6 address without brackets", remedy)
    elif not _is_host(host):
        raise BadValue("names a host that cannot exist", remedy)
    return host, int(port)


def listen_address(text: str) -> str:
    """An address to listen on, unchanged. Raises BadValue."""
    split_address(text)
    return text


def base_url(text: str) -> str:
    """The http or https URL of a whole host, without a path and without the closing slash. Raises BadValue."""
    return _bare(_split_url(text), "write only scheme and host, for example https://chat.example.org")


def web_origin(text: str) -> str:
    """An origin as a browser sends it (RFC 6454 §6.2): lower case, no default port, no path. Raises BadValue."""
    if text in ("*", "null"):
        raise BadValue("would let any site act for the people who are signed in", "name each origin that may call")
    return _bare(_split_url(text), "write only scheme, host and port, for example https://chat.example.org")


def webhook_url(text: str) -> str:
    """An https URL, or an http one that stays on this machine, unchanged. Raises BadValue."""
    parts = _split_url(text)
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise BadValue("would send codes over the network unencrypted", "use https, or http to this machine only")
    if parts.fragment:
        raise BadValue("holds a #fragment, which is never sent", "leave out the # and what follows")
    return text


def network(text: str) -> str:
    """An IP address or CIDR block in its usual spelling. Raises BadValue."""
    try:
        # Host bits are dropped: 10.0.0.1/8 can only mean 10.0.0.0/8.
        found = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise BadValue("is neither an IP address nor a CIDR block", "write for example 10.0.0.0/8 or ::1") from None
    return str(found.network_address) if found.num_addresses == 1 else str(found)


def directory(text: str) -> str:
    """A path, unchanged. Raises BadValue for one that only a shell would understand."""
    if not text.strip():
        raise BadValue("is empty", "name a path")
    return file_path(text)


def file_path(text: str) -> str:
    """A path, unchanged. Raises BadValue for one that only a shell would understand."""
    if text.startswith("~"):
        raise BadValue("begins with ~, which is only known to the shell", "write the whole path")
    return text


def identifier(text: str) -> str:
    """Letters and digits, unchanged: it becomes part of a URL. Raises BadValue."""
    if not (text.isascii() and text.isalnum()):
        raise BadValue("holds more than letters and digits", "copy it again, without quotes and blanks")
    return text


def bearer_token(text: str) -> str:
    """What can stand in an `Authorization: Bearer` field (RFC 6750 §2.1), unchanged. Raises BadValue."""
    if not _BEARER.fullmatch(text):
        raise BadValue("holds characters that no HTTP client can send", "use letters, digits and - . _ ~ + / only")
    return text


def is_loopback(host: str) -> bool:
    """Whether this host name or address (without brackets) can only be this machine."""
    if host.lower().rstrip(".") == "localhost":
        return True
    return _is_ip(host) and ipaddress.ip_address(host).is_loopback


def _split_url(text: str) -> SplitResult:
    remedy = "write a URL such as https://chat.example.org"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise BadValue("is not a URL", remedy) from None
    if parts.scheme not in _DEFAULT_PORTS or " " in text:
        raise BadValue("is not an http or https URL", remedy)
    if "@" in parts.netloc:
        raise BadValue("holds a user name or password", "leave out the @ and what stands before it")
    if not _is_host(parts.hostname or "") or port == 0:
        raise BadValue("names a host or port that cannot exist", f"{remedy} (other alphabets in their xn-- form)")
    return parts


def _bare(parts: SplitResult, remedy: str) -> str:
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise BadValue("holds more than a scheme, a host and a port", remedy)
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    port = "" if parts.port in (None, _DEFAULT_PORTS[parts.scheme]) else f":{parts.port}"
    return f"{parts.scheme}://{host}{port}"


def _is_host(host: str) -> bool:
    # "10.0.0.300" and "1.2.3" are no addresses, and no name ends in a number (RFC 3696 §2).
    if _is_ip(host):
        return True
    last = host.rstrip(".").rpartition(".")[2]
    return len(host) <= 253 and not last.isdigit() and _HOST_NAME.fullmatch(host) is not None


def _is_ip(host: str, version: int | None = None) -> bool:
    try:
        return version in (None, ipaddress.ip_address(host).version)
    except ValueError:
        return False
