"""What else callers send: compressed bodies, traces, and limits as plain arithmetic."""

from __future__ import annotations

import gzip
import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane import trace
from dataplane.encoding import MEMBERS_MAX, decode, inflate
from dataplane.errors import ApiError
from dataplane.http1 import Request
from dataplane.keys import Key, KeyRing, KeysError, hash_of, line_of, new_token, parse
from dataplane.limits import Account, Bucket, duration
from tests.dataplane.client import ask, chat, request
from tests.dataplane.conftest import Proxy, StartProxy
from tests.fakes.backend import Backend

LIMIT = 10_000


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


def in_members(data: bytes) -> bytes:
    return gzip.compress(data[: len(data) // 2]) + gzip.compress(data[len(data) // 2 :])


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("gzip", gzip.compress),
        ("GZIP", in_members),
        ("x-gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", raw_deflate),
    ],
)
async def test_the_engine_gets_a_compressed_body_as_it_was(proxy: Proxy, backend: Backend, encoding: str, pack: object) -> None:
    body = json.dumps(chat("x" * 5000)).encode()
    packed = pack(body)  # type: ignore[operator]
    assert (await ask(proxy.port, request(packed, headers={"Content-Encoding": encoding}))).status == 200
    seen = backend.requests[0]
    assert seen.body == body
    assert "content-encoding" not in seen.headers


@pytest.mark.parametrize(
    ("codings", "status"),
    [
        (("identity", "gzip"), 200),
        (("gzip, identity",), 200),
        (("", "GZip"), 200),
        (("gzip", "gzip"), 415),
        (("gzip", "br"), 415),
        (("identity", "br"), 415),
    ],
)
async def test_codings_count_in_however_many_lines_they_come(
    proxy: Proxy, backend: Backend, codings: tuple[str, ...], status: int
) -> None:
    body = json.dumps(chat("x")).encode()
    lines = "".join(f"Content-Encoding: {coding}\r\n" for coding in codings).encode()
    head, found, packed = request(gzip.compress(body)).partition(b"\r\n\r\n")
    response = await ask(proxy.port, head + b"\r\n" + lines.removesuffix(b"\r\n") + found + packed)
    assert response.status == status
    assert len(backend.requests) == (status == 200)
    for seen in backend.requests:
        assert (seen.body, seen.headers.get("content-encoding", "")) == (body, "")


async def test_a_body_that_would_burst_is_refused(start_proxy: StartProxy, backend: Backend) -> None:
    proxy = await start_proxy(backend, body_bytes_max=100_000)
    bomb = gzip.compress(b"\0" * 50_000_000)
    response = await ask(proxy.port, request(bomb, headers={"Content-Encoding": "gzip"}))
    assert (response.status, response.json["error"]["code"]) == (413, "body_too_large")
    assert not backend.requests


def posted(encoding: bytes, body: bytes) -> Request:
    found = Request(method="POST", path="/v1/completions", body=body)
    found.add_header(b"content-encoding", encoding)
    return found


@given(st.sampled_from([b"gzip", b"deflate"]), st.binary(max_size=300))
def test_any_bytes_are_a_body_or_a_refusal(encoding: bytes, body: bytes) -> None:
    refusal = decode(posted(encoding, body), LIMIT)
    assert refusal is None or refusal.status in (400, 413)


@given(st.binary(max_size=2000), st.integers(0, 2000))
def test_no_more_than_the_bound_comes_out(body: bytes, bytes_max: int) -> None:
    assert inflate(gzip.compress(body), 31, bytes_max) == (body if len(body) <= bytes_max else None)


def test_cut_bodies_and_endless_members_are_refused() -> None:
    whole = gzip.compress(b"abc" * 100)
    for broken in (whole[:-1], whole + b"x", gzip.compress(b"") * (MEMBERS_MAX + 1)):
        refusal = decode(posted(b"gzip", broken), LIMIT)
        assert isinstance(refusal, ApiError)
        assert refusal.code == "invalid_encoding"


@pytest.mark.parametrize(
    "header",
    [b"", b"00-1-2-01", b"ff-" + b"1" * 32 + b"-" + b"1" * 16 + b"-01", b"00-" + b"0" * 32 + b"-" + b"1" * 16 + b"-01"],
)
def test_what_is_no_trace_is_not_continued(header: bytes) -> None:
    assert trace.continued(header) == b""


def test_a_trace_goes_on_with_its_flags_in_a_span_of_its_own() -> None:
    begun = trace.begun(trace.Ids().next())
    went_on = trace.continued(begun)
    assert went_on[:36] == begun[:36]
    assert went_on[36:52] != begun[36:52]
    assert went_on[52:] == begun[52:]


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 50)), max_size=60))
def test_a_bucket_never_grants_more_than_it_holds_and_what_flows_in(steps: list[tuple[float, int]]) -> None:
    bucket, now, granted = Bucket(60, 0.0), 0.0, 0
    for pause_s, amount in steps:
        now += pause_s
        bucket.refill(now)
        if not bucket.wait_s(amount):
            bucket.level -= amount
            granted += amount
        assert granted <= 60 + now + 1e-6


def test_what_was_used_beyond_the_reservation_is_paid() -> None:
    account = Account(Key("a", "h", tokens_per_minute=100), share=1, now=0.0)
    assert account.reserve(50, 0.0) is None
    account.settle(50, 150, 0.0)
    refusal = account.reserve(1, 0.0)
    assert refusal is not None
    assert refusal.retry_after_s == pytest.approx(31, abs=1)


@pytest.mark.parametrize(("seconds", "text"), [(0.1204, b"121ms"), (3.5, b"3.5s"), (71.2, b"1m12s"), (3600, b"60m0s")])
def test_durations_are_written_as_openai_writes_them(seconds: float, text: bytes) -> None:
    assert duration(seconds) == text


def test_a_key_is_found_by_its_token_and_by_nothing_else() -> None:
    token = new_token().encode()
    key = Key("a", hash_of(token), tenant="t", models=("m",))
    ring = KeyRing(parse(b"# comment\n\n" + line_of(key) + b"\n"))
    assert ring.find(token) == key
    assert ring.find(token + b"x") is None
    assert ring.find(key.hash.encode()) is None


@pytest.mark.parametrize(
    "text",
    [
        b"secret",
        b'{"id":"a","hash":"secret"}',
        b'{"id":"a","hash":"sha256:secret"}',
        b'{"id":"a","hash":"sha256:' + b"0" * 64 + b'","limit":"secret"}',
        b'{"id":"secret","hash":"sha256:' + b"0" * 64 + b'"}\n' * 2,
    ],
)
def test_a_wrong_keys_file_is_refused_without_quoting_it(text: bytes) -> None:
    with pytest.raises(KeysError) as refused:
        parse(text)
    assert "secret" not in str(refused.value)
