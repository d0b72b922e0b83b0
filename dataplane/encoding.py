"""Compressed request bodies: undone here within a bound, since routing reads them and engines do not. Pure."""

from __future__ import annotations

import zlib

from dataplane.errors import ApiError, bad_request, too_large
from dataplane.http1 import Request

MEMBERS_MAX = 64
_GZIP, _ZLIB, _RAW = 31, 15, -15
_WINDOWS = {b"gzip": _GZIP, b"x-gzip": _GZIP, b"deflate": _ZLIB}
_PLAIN = (b"", b"identity")


def decode(request: Request, bytes_max: int) -> ApiError | None:
    """The request as if it had come uncompressed, or why it cannot be."""
    encoding = _said(request)
    if not encoding:
        return None
    window = _WINDOWS.get(encoding)
    if window is None:
        message = f"Content-Encoding {encoding.decode('latin-1')!r} is not supported; gzip and deflate are."
        return ApiError(415, message, code="unsupported_encoding")
    try:
        body = inflate(request.body, _RAW if _is_raw(request.body, window) else window, bytes_max)
    except zlib.error:
        return bad_request(f"The request body is not valid {encoding.decode()}.", code="invalid_encoding")
    if body is None:
        return too_large(bytes_max)
    request.body = body
    request.headers = [(name, value) for name, value in request.headers if name != b"content-encoding"]
    del request.fields[b"content-encoding"]
    return None


def _said(request: Request) -> bytes:
    """Its codings in lower case, however many lines they came in, without those that are none."""
    lines = b",".join([value for name, value in request.headers if name == b"content-encoding"])
    codings = [coding.strip().lower() for coding in lines.split(b",")]
    return b", ".join([coding for coding in codings if coding not in _PLAIN])


def inflate(data: bytes, window: int, bytes_max: int) -> bytes | None:
    """None: more than `bytes_max` would come out; no more is made. zlib.error: broken, cut off, or bytes behind it."""
    parts, size = [], 0
    for _ in range(MEMBERS_MAX):
        member = zlib.decompressobj(window)
        part = member.decompress(data, bytes_max - size + 1)
        size += len(part)
        parts.append(part)
        if size > bytes_max:
            return None
        if not member.eof:
            raise zlib.error("incomplete")
        data = member.unused_data
        if not data:
            return b"".join(parts)
        if window != _GZIP:  # only gzip has members
            break
    raise zlib.error("bytes behind the end")


def _is_raw(body: bytes, window: int) -> bool:
    """`deflate` without its zlib header, as some clients send it."""
    return window == _ZLIB and (len(body) < 2 or body[0] & 0x0F != 8 or (body[0] << 8 | body[1]) % 31 != 0)
