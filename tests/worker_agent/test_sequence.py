"""One rank's numbering: every way of missing something, by hand and at random."""

from __future__ import annotations

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from worker_agent.sequence import REPLAY_TIMEOUT_S, VERIFY_AFTER_S, AskReplay, Begin, Deliver, Hole, RankSequence, Step


def live(sequence: RankSequence, *numbers: int, run: str = "a") -> list[Step]:
    return [step for number in numbers for step in sequence.live(number, f"{run}{number}".encode(), 0.0)]


def delivered(steps: list[Step]) -> list[int]:
    return [step.sequence for step in steps if isinstance(step, Deliver)]


def started(*, upto: int = 0) -> RankSequence:
    """Has replayed `upto` payloads of run a."""
    sequence = RankSequence(0.0, can_replay=True)
    assert sequence.start(0.0) == [AskReplay(0)]
    for number in range(upto):
        sequence.replayed(number, f"a{number}".encode(), 0.0)
    sequence.replay_ended(0.0)
    return sequence


def test_an_empty_replay_at_the_start_means_an_empty_engine() -> None:
    sequence = RankSequence(0.0, can_replay=True)
    sequence.start(0.0)
    assert sequence.replay_ended(0.0) == [Begin(fresh=False)]
    assert delivered(live(sequence, 0, 1)) == [0, 1]


def test_a_buffer_that_has_lost_its_beginning_is_a_hole() -> None:
    sequence = RankSequence(0.0, can_replay=True)
    sequence.start(0.0)
    assert sequence.replayed(7, b"a7", 0.0) == [Hole(0), Deliver(7, b"a7")]


def test_without_a_replay_socket_only_number_zero_is_a_beginning() -> None:
    sequence = RankSequence(0.0, can_replay=False)
    assert sequence.start(0.0) == []
    assert live(sequence, 3) == [Hole(0), Deliver(3, b"a3")]
    fresh = RankSequence(0.0, can_replay=False)
    fresh.start(0.0)
    assert live(fresh, 0) == [Begin(fresh=False), Deliver(0, b"a0")]
    virgin = RankSequence(0.0, can_replay=False, virgin=True)
    assert virgin.start(0.0) == [Begin(fresh=False)]


def test_live_payloads_wait_for_the_replay_and_are_not_delivered_twice() -> None:
    sequence = started(upto=3)
    assert live(sequence, 5) == [AskReplay(2)]
    assert live(sequence, 6) == []
    assert sequence.behind
    steps = [step for number in (2, 3, 4, 5) for step in sequence.replayed(number, f"a{number}".encode(), 0.0)]
    assert delivered(steps) == [3, 4, 5]
    assert delivered(sequence.replay_ended(0.0)) == [6]
    assert not sequence.behind


def test_what_a_full_pipe_dropped_is_asked_for_again() -> None:
    sequence = started(upto=1)
    live(sequence, 9)
    sequence.replayed(0, b"a0", 0.0)
    sequence.replayed(1, b"a1", 0.0)
    assert sequence.replayed(5, b"a5", 0.0) == []
    assert sequence.replay_ended(0.0) == [AskReplay(1)]


def test_a_number_below_the_last_is_a_new_engine_asked_from_its_beginning() -> None:
    sequence = started(upto=4)
    assert live(sequence, 1, run="b") == [Begin(fresh=True), AskReplay(0)]
    steps = sequence.replayed(0, b"b0", 0.0) + sequence.replayed(1, b"b1", 0.0) + sequence.replay_ended(0.0)
    assert delivered(steps) == [0, 1]
    assert not any(isinstance(step, Hole) for step in steps)


def test_a_new_engine_that_numbered_past_the_old_is_known_by_the_bytes() -> None:
    sequence = started(upto=4)
    assert live(sequence, 9, run="b") == [AskReplay(3)]
    assert sequence.replayed(3, b"b3", 0.0) == [Begin(fresh=True), AskReplay(0)]


def test_a_replay_that_ends_below_ours_is_a_new_engine() -> None:
    sequence = started(upto=4)
    assert sequence.tick(VERIFY_AFTER_S) == [AskReplay(3)]
    assert not sequence.behind
    assert sequence.replay_ended(VERIFY_AFTER_S) == [Begin(fresh=True)]


def test_a_silent_replay_is_given_up_and_the_gap_is_a_hole() -> None:
    sequence = started(upto=2)
    live(sequence, 5)
    assert sequence.tick(REPLAY_TIMEOUT_S / 2) == []
    assert sequence.tick(REPLAY_TIMEOUT_S) == [Hole(2), Deliver(5, b"a5")]


def test_the_same_payload_again_is_nothing_new() -> None:
    sequence = started(upto=2)
    assert live(sequence, 1) == []


def test_after_a_broken_connection_even_the_next_number_is_not_believed_unasked() -> None:
    sequence = started(upto=4)
    assert sequence.disconnected(0.0) == [AskReplay(3)]
    assert live(sequence, 4, run="b") == []
    assert sequence.behind
    assert sequence.replayed(3, b"b3", 0.0) == [Begin(fresh=True), AskReplay(0)]


def test_an_engine_that_stays_away_is_asked_again_and_again() -> None:
    sequence = started(upto=4)
    sequence.disconnected(0.0)
    assert sequence.tick(REPLAY_TIMEOUT_S) == [AskReplay(3)]
    assert sequence.tick(2 * REPLAY_TIMEOUT_S) == [AskReplay(3)]


class Wires(RuleBasedStateMachine):
    """An engine that numbers, loses and restarts; a replay socket with a short buffer that answers when it likes.

    Once nothing is lost any more and every wire is empty, the observer has exactly the tail of the engine's payloads since its
    last Begin or Hole, and all of them where it was a Begin.
    """

    @initialize(buffer=st.integers(1, 8))
    def begin(self, buffer: int) -> None:
        self.now = 0.0
        self.run = 0
        self.sent: list[bytes] = []
        self.buffer: deque[tuple[int, bytes]] = deque(maxlen=buffer)
        self.wire: deque[tuple[int, bytes] | None] = deque()  # None: the connection broke here
        self.answers: deque[tuple[int, bytes]] | None = None
        self.seen: list[bytes] = []
        self.complete = False
        self.sequence = RankSequence(0.0, can_replay=True)
        self.carry_out(self.sequence.start(0.0))

    def carry_out(self, steps: list[Step]) -> None:
        for step in steps:
            if isinstance(step, AskReplay):
                self.answers = deque((n, data) for n, data in self.buffer if n >= step.start)
                self.answers.append((-1, b""))
            elif isinstance(step, Deliver):
                self.seen.append(step.payload)
            else:
                self.seen.clear()
                self.complete = isinstance(step, Begin)

    @rule(lost=st.booleans())
    def publish(self, lost: bool) -> None:
        data = f"run {self.run} payload {len(self.sent)}".encode()
        self.buffer.append((len(self.sent), data))
        if not lost:
            self.wire.append((len(self.sent), data))
        self.sent.append(data)

    @rule(answers_lost=st.booleans())
    def restart(self, answers_lost: bool) -> None:
        self.wire.append(None)
        if answers_lost:
            self.answers = None
        self.run += 1
        self.sent.clear()
        self.buffer.clear()

    @precondition(lambda self: self.wire)
    @rule()
    def arrives(self) -> None:
        frame = self.wire.popleft()
        if frame is None:
            self.carry_out(self.sequence.disconnected(self.now))
        else:
            self.carry_out(self.sequence.live(*frame, self.now))

    @precondition(lambda self: self.answers)
    @rule(lost=st.integers(0, 9))
    def answered(self, lost: int) -> None:
        number, data = self.answers.popleft()
        if number < 0:
            self.carry_out(self.sequence.replay_ended(self.now))
        elif lost:
            self.carry_out(self.sequence.replayed(number, data, self.now))

    @rule(seconds=st.floats(0.0, REPLAY_TIMEOUT_S))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.carry_out(self.sequence.tick(self.now))

    @rule()
    def settles(self) -> None:
        """One payload that arrives, then peace."""
        self.publish(lost=False)
        for _ in range(200):
            if self.wire:
                self.arrives()
            elif self.answers:
                self.answered(lost=1)
            elif self.sequence.behind:
                self.time_passes(REPLAY_TIMEOUT_S)
            else:
                break
        assert self.seen, "the payload that arrived was not delivered"
        assert self.seen == self.sent[-len(self.seen) :]
        if self.complete:
            assert self.seen == self.sent


TestWires = Wires.TestCase
TestWires.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
