"""Frames: whole, byte by byte, in any pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.frames import FRAME_BYTES_MAX, Frames, frame

BODIES = st.lists(st.binary(max_size=40), max_size=6)


@given(BODIES, st.data())
def test_bodies_come_out_as_they_went_in_whatever_the_pieces(bodies: list[bytes], data: st.DataObject) -> None:
    wire = b"".join(map(frame, bodies))
    frames, found, at = Frames(), [], 0
    while at < len(wire):
        size = data.draw(st.integers(1, len(wire) - at))
        found += frames.feed(wire[at : at + size])
        at += size
    assert found == bodies


@given(BODIES)
def test_byte_by_byte(bodies: list[bytes]) -> None:
    frames = Frames()
    assert [body for byte in b"".join(map(frame, bodies)) for body in frames.feed(bytes([byte]))] == bodies


def test_a_frame_is_given_with_its_last_byte() -> None:
    frames = Frames()
    wire = frame(b"one") + frame(b"two")
    assert frames.feed(wire[:-1]) == [b"one"]
    assert frames.feed(wire[-1:]) == [b"two"]


def test_a_length_that_nobody_sends_is_refused() -> None:
    with pytest.raises(ValueError, match="at most"):
        Frames().feed((FRAME_BYTES_MAX + 1).to_bytes(4, "little"))
