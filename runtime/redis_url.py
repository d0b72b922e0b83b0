"""Redis URLs with a password that is not on a command line, and without one for logs. Pure."""

from __future__ import annotations

from urllib.parse import quote, urlsplit, urlunsplit

SCHEMES = ("redis", "rediss", "unix")


def check_redis_url(flag: str, url: str) -> None:
    """ValueError, without the URL's password: not one that can be connected to."""
    try:
        parts = urlsplit(url)
        reads = parts.port is None or parts.port > 0
    except ValueError:  # whose message may quote a password with a sign that ends it
        reads = False
    if not reads:
        raise ValueError(f"{flag}: its host and port cannot be read (signs in a password are written as %XX)")
    if parts.scheme not in SCHEMES:
        raise ValueError(f"{flag}: {shown(url)!r} begins with none of redis://, rediss://, unix://")


def with_password(url: str, password: str) -> str:
    """The same URL with the password, unless it has one already or there is none."""
    parts = urlsplit(url)
    if not password or parts.password:
        return url
    user, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user}:{quote(password, safe='')}@{host}"))


def shown(url: str) -> str:
    """For messages: without user and password, and without the query, which may hold one."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))
