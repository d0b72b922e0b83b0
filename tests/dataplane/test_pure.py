"""Small cores: paths and bodies, the fleet view, the budgets, the outcome."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.outcome import End
from contract.routing import Answer, Refusal
from dataplane.admission import Concurrency, RetryBudget
from dataplane.attempt import Attempt
from dataplane.errors import ApiError, from_refusal
from dataplane.fallback import FAILED_SKIP_S, Fleet, static_view
from dataplane.http1 import Request
from dataplane.metrics import Metrics
from dataplane.openai import Ask, FormAsk, Kind, classify, read_ask, read_json, read_usual_json, read_whole_json
from dataplane.relay import Relay
from dataplane.report import outcome
from dataplane.settings import Settings
from proto import routing_pb2 as pb
from runtime.settings import SettingsError, parse
from tests.fakes.backend import STREAM_HEAD, stream_bytes, stream_events, usage

CHAT = "/v1/chat/completions"


def posted(name: bytes, value: bytes, body: bytes) -> Request:
    request = Request("POST", b"/v1/x", body=body)
    request.add_header(name, value)
    return request


# --- openai ---


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("POST", "/v1/chat/completions", Kind.ROUTED),
        ("POST", "/v1/anything/new", Kind.ROUTED),
        ("POST", "/tokenize", Kind.ROUTED),
        ("GET", "/v1/models", Kind.MODELS),
        ("HEAD", "/v1/models", Kind.MODELS),
        ("GET", "/v1/models/org/name", Kind.MODEL),
        ("GET", "/health", Kind.HEALTH),
        ("GET", "/ping", Kind.HEALTH),
        ("OPTIONS", "/v1/chat/completions", Kind.PREFLIGHT),
    ],
)
def test_paths_are_told_apart(method: str, path: str, kind: Kind) -> None:
    assert classify(method, path) is kind


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/chat/completions", 405),
        ("GET", "/v1/responses/x", 404),
        ("DELETE", "/v1/files/x", 404),
        ("POST", "/health", 405),
        ("GET", "/", 404),
        ("POST", "/admin", 404),
    ],
)
def test_other_methods_and_paths_are_refused(method: str, path: str, status: int) -> None:
    refusal = classify(method, path)
    assert isinstance(refusal, ApiError)
    assert refusal.status == status


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "empty_body"),
        (b"{", "invalid_json"),
        (b'{"model": "m", "messages": [', "invalid_json"),
        (b"[1]", "not_an_object"),
        (b"null", "not_an_object"),
        (b'"text"', "not_an_object"),
        (b'{"model": "m", "x": "\xff"}', "invalid_utf8"),
        (b'{"stream": true}', "model_missing"),
        (b'{"model": null}', "model_missing"),
        (b'{"model": 7}', "model_invalid"),
        (b'{"model": ""}', "model_invalid"),
        (b'{"model": "m"} trailing', "invalid_json"),
        (b'{"a":' * 100_000, "invalid_json"),
    ],
)
def test_each_way_to_be_wrong_has_its_own_code(body: bytes, code: str) -> None:
    refusal = read_json(body, CHAT)
    assert isinstance(refusal, ApiError)
    assert (refusal.status, refusal.code) == (400, code)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_body_or_a_refusal(body: bytes) -> None:
    assert isinstance(read_json(body, CHAT), Ask | ApiError)


def test_the_fields_that_routing_needs_are_read_and_odd_ones_ignored() -> None:
    body = b'{"model":"m","stream":true,"max_tokens":"many","max_completion_tokens":9,"cache_salt":"s","messages":[{"a":1}]}'
    assert read_json(body, CHAT) == Ask("m", True, 9, "s")
    assert read_json(b'{"model":"m","stream":"yes","max_tokens":1e99,"cache_salt":5}', CHAT) == Ask("m")


def test_the_model_of_a_multipart_body_is_found_at_either_end() -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n'
    filler = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n' + b"\0" * 200_000 + b"\r\n"
    for body in (part + filler, filler + part + b"--b--\r\n"):
        request = posted(b"content-type", b"multipart/form-data; boundary=b", body)
        assert read_ask(request, 1000) == FormAsk("whisper")


def test_compressed_bodies_are_refused_in_words() -> None:
    refusal = read_ask(posted(b"content-encoding", b"zstd", b"x"), 1000)
    assert isinstance(refusal, ApiError)
    assert refusal.status == 415


def test_an_unknown_model_is_404_and_every_other_shed_503_with_a_time() -> None:
    assert from_refusal(Refusal(pb.Shed.UNKNOWN_MODEL, "", 0.0), "x").status == 404
    for reason in pb.Shed.Reason.values():
        if reason != pb.Shed.UNKNOWN_MODEL:
            refusal = from_refusal(Refusal(reason, "", 0.0), "x")
            assert refusal.status == 503
            assert refusal.retry_after_s > 0
            assert refusal.code


# --- fallback ---


def fleet(*urls: str, model: str = "m") -> Fleet:
    found = Fleet()
    found.apply(static_view((model, url) for url in urls))
    return found


def test_the_least_active_endpoint_is_chosen_and_ties_go_in_turn() -> None:
    view = fleet("http://a", "http://b", "http://c")
    chosen = set()
    for _ in range(3):
        endpoint = view.choose("m", (), 0.0)
        assert endpoint is not None
        view.began(endpoint.url)
        chosen.add(endpoint.url)
    assert chosen == {"http://a", "http://b", "http://c"}
    view.ended("http://b")
    endpoint = view.choose("m", (), 0.0)
    assert endpoint is not None
    assert endpoint.url == "http://b"


def test_what_failed_is_skipped_for_a_while_unless_nothing_else_is_left() -> None:
    view = fleet("http://a", "http://b")
    view.failed("http://a", 10.0)
    for _ in range(4):
        assert view.choose("m", (), 10.1).url == "http://b"  # type: ignore[union-attr]
    assert view.choose("m", ("http://b",), 10.1).url == "http://a"  # type: ignore[union-attr]
    later = {view.choose("m", (), 10.1 + FAILED_SKIP_S).url for _ in range(4)}  # type: ignore[union-attr]
    assert later == {"http://a", "http://b"}
    assert view.choose("m", ("http://a", "http://b"), 0.0) is None
    assert view.choose("other", (), 0.0) is None


def test_unavailable_endpoints_are_the_last_resort() -> None:
    view = static_view([("m", "http://a"), ("m", "http://b")])
    view.endpoints[0].available = False
    found = Fleet()
    found.apply(view)
    assert {found.choose("m", (), 0.0).url for _ in range(4)} == {"http://b"}  # type: ignore[union-attr]
    assert found.choose("m", ("http://b",), 0.0).url == "http://a"  # type: ignore[union-attr]


def test_an_empty_view_of_a_cold_control_plane_does_not_erase_a_known_fleet() -> None:
    view = fleet("http://a")
    assert not view.apply(pb.FleetView(version=9, warm=False))
    assert view.knows("m")
    assert not view.warm
    assert view.apply(pb.FleetView(version=10, warm=True))
    assert not view.knows("m")


def test_more_ends_than_begins_is_a_broken_invariant() -> None:
    with pytest.raises(AssertionError):
        fleet("http://a").ended("http://a")


# --- admission ---


def test_the_retry_budget_is_a_share_of_requests_and_of_time() -> None:
    budget = RetryBudget(ratio=0.5, per_s=0.0, now=0.0)
    assert not budget.take(1.0)
    budget.earn()
    budget.earn()
    assert budget.take(1.0)
    assert not budget.take(1.0)
    slow = RetryBudget(ratio=0.0, per_s=1.0, now=0.0)
    slow.tokens = 0.0
    assert not slow.take(0.5)
    assert slow.take(1.0)


@given(st.lists(st.sampled_from(["earn", "take"]), max_size=300))
def test_retries_never_exceed_what_requests_earned(steps: list[str]) -> None:
    budget = RetryBudget(ratio=0.2, per_s=0.0, now=0.0)
    taken = sum(budget.take(0.0) if step == "take" else bool(budget.earn()) for step in steps)
    assert taken <= 0.2 * steps.count("earn") + 1e-9


def test_concurrency_is_bounded() -> None:
    bound = Concurrency(1)
    assert bound.enter()
    assert not bound.enter()
    bound.leave()
    assert bound.enter()


# --- report ---


def test_an_outcome_says_what_the_engine_said() -> None:
    relay = Relay(hold_bytes_max=100_000)
    relay.feed(STREAM_HEAD + stream_bytes(stream_events(["a", "b"], usage_of=usage(30, 2, 16))))
    attempt = Attempt(Answer(0, decision_id=5, url="u"), 1.0, 1.0)
    attempt.relay, attempt.first_at, attempt.last_at = relay, 1.5, 2.5
    found = outcome(attempt, End.COMPLETE, 3.0, "r", "m", 30, True)
    assert (found.decision_id, found.end, found.http_status, found.streamed) == (5, pb.COMPLETE, 200, True)
    assert (found.prompt_tokens, found.cached_tokens, found.output_tokens) == (30, 16, 2)
    assert (found.ttft_s, found.e2e_s) == (0.5, 2.0)
    assert found.itl_s == pytest.approx(1.0)
    assert not found.url


def test_an_outcome_without_a_response_carries_no_times_of_tokens() -> None:
    found = outcome(Attempt(Answer(0, url="u"), 1.0, 1.0), End.CONNECT_FAILED, 2.0, "r", "m", 3, True)
    assert found.ttft_s < 0
    assert (found.model, found.url, found.input_tokens, found.http_status) == ("m", "u", 3, 0)


def test_ends_have_the_same_numbers_on_the_wire() -> None:
    for name, value in pb.End.items():
        if name != "END_UNSPECIFIED":
            assert End[name] == value


# --- metrics, settings ---


def test_the_metrics_page_has_every_kind() -> None:
    metrics = Metrics()
    metrics.requests.add("/v1/completions", "200")
    metrics.ttft.observe(0.02)
    metrics.gauge("headway_proxy_x", "x", lambda: 4)
    page = metrics.page().decode()
    assert 'headway_proxy_requests_total{path="/v1/completions",status="200"} 1.0' in page
    assert 'headway_proxy_ttft_seconds_bucket{le="0.025"} 1.0' in page
    assert 'headway_proxy_ttft_seconds_bucket{le="0.01"} 0.0' in page
    assert "headway_proxy_x 4.0" in page


@pytest.mark.parametrize(
    "argv",
    [
        ["--port", "70000"],
        ["--processes", "0"],
        ["--endpoint", "http://x"],
        ["--tokenizer", "m="],
        ["--decision-timeout-ms", "0"],
    ],
)
def test_settings_that_make_no_sense_are_refused(argv: list[str]) -> None:
    with pytest.raises(SettingsError):
        parse(Settings, "dataplane", argv, {})


@given(
    st.one_of(
        st.dictionaries(
            st.sampled_from(
                ["model", "stream", "max_tokens", "max_completion_tokens", "max_output_tokens", "cache_salt", "messages"]
            ),
            st.one_of(
                st.none(),
                st.booleans(),
                st.integers(-1, 2**33),
                st.text(max_size=3),
                st.sampled_from(["m", "m" * 513]),
                st.floats(),
                st.lists(st.none()),
            ),
        ).map(lambda fields: json.dumps(fields).encode()),
        st.binary(max_size=20),
        st.sampled_from([b"", b"[]", b"1", b'"x"', b"{", b'{"model":"\xff"}', b'{"model":"a","model":"b"}', b"[" * 5000]),
    ),
    st.sampled_from([CHAT, "/v1/rerank"]),
)
def test_a_body_that_is_read_whole_says_the_same(body: bytes, path: str) -> None:
    whole = read_whole_json(body, path)
    asked = read_json(body, path)
    assert (whole is None) == isinstance(asked, ApiError)
    assert whole is None or whole == (asked, json.loads(body))
    usual = read_usual_json(body)
    if usual is not None:
        assert isinstance(asked, Ask)
        assert (usual.model, usual.streams, usual.max_tokens, usual.cache_salt) == (
            asked.model,
            asked.streams,
            asked.max_tokens,
            asked.cache_salt,
        )


@pytest.mark.parametrize(
    "limit", [{}, {"max_tokens": 5}, {"max_tokens": 5, "max_completion_tokens": 6}, {"max_output_tokens": 7}]
)
def test_a_usual_body_is_read_in_one_go(limit: dict[str, int]) -> None:
    body = json.dumps({"model": "m", "stream": True, "cache_salt": "s", "messages": [], **limit}).encode()
    usual = read_usual_json(body)
    assert usual is not None
    assert usual.readable
    assert (usual.model, usual.streams, usual.cache_salt) == ("m", True, "s")
    assert usual.max_tokens == (limit.get("max_completion_tokens") or next(iter(limit.values()), 0))
