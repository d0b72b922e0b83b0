"""A prompt is the same wherever it is prepared: a real process for long prompts against the data plane's own steps."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contract import tokens
from dataplane.openai import PROMPT_PATHS, Ask, read_json
from dataplane.prompt_messages import Answer, Job, Loaded, Models, Reports, frame
from dataplane.prompts import ModelSeen, Prompts
from tests.contract.test_tokens_fuzz import BODIES, VALUES
from tests.waiting import wait_until

MODELS = (
    ModelSeen("m", "m", False, tokens.BUILTIN, (16,)),
    ModelSeen("tuned", "m", False, tokens.BUILTIN, (16, 32)),
    ModelSeen("other-name", "m", True, tokens.BUILTIN, ()),
)
ONLY = "m"
TIMEOUT_S = 30.0


class Beside:
    """The process, asked one thing at a time."""

    def __init__(self) -> None:
        self._line, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen([sys.executable, "-m", "dataplane.prompt_worker"], stdin=theirs.fileno())
        self._line.settimeout(TIMEOUT_S)
        self._reports = Reports()
        self._line.sendall(frame(Models(MODELS, ONLY)))
        assert self._next() == Loaded(tokens.BUILTIN)

    def _next(self) -> Loaded | Answer:
        while True:
            data = self._line.recv(1 << 16)
            assert data, "it has ended"
            found = [report for byte in data for report in self._reports.feed(bytes((byte,)))]
            if found:
                (report,) = found
                return report

    def prepare(self, path: str, body: bytes) -> Answer:
        self._line.sendall(frame(Job(7, path), len(body)) + body)
        answer = self._next()
        assert isinstance(answer, Answer)
        assert answer.id == 7
        assert answer.seconds >= 0
        return Answer(0, answer.ask, answer.refusal, answer.prompt)

    def close(self) -> int:
        self._line.close()
        return self._process.wait(TIMEOUT_S)


@pytest.fixture(scope="module")
def beside() -> Iterator[Beside]:
    process = Beside()
    yield process
    assert process.close() == 0


@pytest.fixture(scope="module")
def here() -> Prompts:
    prompts = Prompts(tokens.load, {})
    prompts.see(MODELS, time.monotonic())
    wait_until(lambda: set(prompts.status(MODELS).values()) == {"ready"}, what="the tokenizer is loaded")
    return prompts


def by_steps(prompts: Prompts, path: str, body: bytes) -> Answer:
    """As a thread does it."""
    ask = read_json(body, path)
    if not isinstance(ask, Ask):
        return Answer(0, refusal=ask)
    name = ask.model or ONLY
    model = next((model for model in MODELS if model.name == name), None)
    return Answer(0, ask, None, prompts.prepare(path, ask, body, prompts.plan(name, model)) if model is not None else None)


TEXT = st.text(st.characters(exclude_categories=()), max_size=200).map(lambda text: text * 20)  # half surrogate pairs, too
NAMES = st.sampled_from([*(model.name for model in MODELS), "unknown", "", None, 7])
LIMITS = st.none() | st.integers(-1, 2**33) | VALUES
ROUTING = st.fixed_dictionaries(
    {"model": NAMES},
    optional={
        **dict.fromkeys(("max_tokens", "max_completion_tokens", "max_output_tokens"), LIMITS),
        "stream": st.booleans() | VALUES,
        "cache_salt": TEXT | VALUES,
    },
)
TURNS = st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": TEXT}), max_size=4)
PROMPTS = st.one_of(
    st.fixed_dictionaries({"messages": TURNS}),
    st.fixed_dictionaries({"prompt": TEXT | st.lists(TEXT, max_size=3)}),
    st.fixed_dictionaries({"prompt": st.lists(st.integers(0, 2**32), max_size=99)}),
    st.fixed_dictionaries({"prompt": st.lists(st.lists(st.integers(0, 8191), max_size=99), max_size=3)}),
    st.fixed_dictionaries({"input": TEXT | st.lists(TEXT, max_size=3)}),
    BODIES,
)


@given(
    path=st.sampled_from(sorted(PROMPT_PATHS)),
    fields=st.tuples(PROMPTS, ROUTING).map(lambda parts: {**parts[0], **parts[1]}),
    escaped=st.booleans(),
    mistake=st.none()
    | st.tuples(st.integers(0, 400), st.sampled_from([b"", b"}", b'"', b"\\", b"\xff", b"\\ud800", b"[" * 2000])),
)
@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_both_ways_say_the_same(
    beside: Beside, here: Prompts, path: str, fields: dict[str, Any], escaped: bool, mistake: tuple[int, bytes] | None
) -> None:
    body = json.dumps(fields, ensure_ascii=escaped).encode("utf-8", "surrogatepass")
    if mistake is not None:
        at, what = mistake
        body = body[:at] + what + body[at + (not what) :]
    assert beside.prepare(path, body) == by_steps(here, path, body)


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b'"x"', b"{", b'{"model": "m"}', b'{"model": "m", "messages": []}'])
@pytest.mark.parametrize("path", sorted(PROMPT_PATHS))
def test_and_of_bodies_that_are_hardly_any(beside: Beside, here: Prompts, path: str, body: bytes) -> None:
    assert beside.prepare(path, body) == by_steps(here, path, body)
