"""Workers of one model whose engines take requests of different lengths."""

from __future__ import annotations

import msgspec
import pytest

from contract.keyspace import ModelCard
from controlplane import wire
from controlplane.question import Decision, Question, Request, Shed, ShedReason
from tests.controlplane.parts import MODEL, Plant, record


def fleet(*lengths: int) -> Plant:
    """A worker a length; 0: it does not say."""
    plant = Plant(0, policy="round_robin")
    for number, length in enumerate(lengths):
        cards = (ModelCard(MODEL, MODEL, MODEL, length),)
        plant.snapshot.worker_registered(msgspec.structs.replace(record(f"w{number}"), models=cards), plant.now)
    return plant


def chosen(plant: Plant, tokens: int, max_tokens: int = 0, *, times: int = 6) -> set[str]:
    asked = Question(Request(model=MODEL, input_tokens=tokens, max_tokens=max_tokens))
    return {plant.place(asked, question_id=number).candidate.endpoint.worker for number in range(times)}


def test_a_long_prompt_goes_where_it_is_taken_and_a_short_one_anywhere() -> None:
    plant = fleet(4096, 8192, 32768)
    assert chosen(plant, 4096) == {"w0", "w1", "w2"}
    assert chosen(plant, 4097) == {"w1", "w2"}
    assert chosen(plant, 9000) == {"w2"}


def test_the_answer_counts_where_it_is_bounded() -> None:
    plant = fleet(4096, 8192)
    assert chosen(plant, 4000, 96) == {"w0", "w1"}
    assert chosen(plant, 4000, 97) == {"w1"}


def test_one_that_does_not_say_its_length_may_take_anything() -> None:
    assert chosen(fleet(4096, 0), 1_000_000) == {"w1"}


def test_what_nobody_takes_is_left_to_an_engine_to_refuse() -> None:
    assert chosen(fleet(4096, 8192), 10_000) == {"w0", "w1"}


def test_the_explanation_says_who_was_too_short() -> None:
    plant = fleet(4096, 8192)
    chosen(plant, 5000, times=1)
    trace = plant.ring.get(0)
    assert trace is not None
    told = {view.worker: view.rejected_by for view in wire.explanation(trace).candidates}
    assert told == {"w0": "context too short", "w1": ""}


def test_it_is_not_sent_where_it_cannot_be_taken_because_the_others_were_tried() -> None:
    plant = fleet(4096, 8192)
    request = Request(model=MODEL, input_tokens=5000, exclude=(1,))
    refused = plant.ask(Question(request))
    assert isinstance(refused, Shed)
    assert refused.reason == ShedReason.EXCLUDED


def test_a_worker_that_joins_with_a_longer_context_is_found_at_once() -> None:
    plant = fleet(4096)
    assert chosen(plant, 5000) == {"w0"}
    cards = (ModelCard(MODEL, MODEL, MODEL, 8192),)
    plant.snapshot.worker_registered(msgspec.structs.replace(record("w1"), models=cards), plant.now)
    assert chosen(plant, 5000) == {"w1"}


@pytest.mark.parametrize("tokens", [1, 4096, 4097, 8193])
def test_policies_that_predict_see_the_same_candidates(tokens: int) -> None:
    plant = fleet(4096, 8192)
    decisions = plant.director.ask_all(
        [(number, Question(Request(model=MODEL, input_tokens=tokens))) for number in range(4)], plant.now, owner="dp"
    )
    for _, decision in decisions:
        assert isinstance(decision, Decision)
        assert decision.candidates == (1 if 4096 < tokens <= 8192 else 2)
