from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen import traces
from loadgen.errors import TraceError
from loadgen.rows import Blocks, Messages, runs
from loadgen.tables import Pauses


def write(path: Path, *lines: object) -> Path:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def mooncake(at: int = 0, tokens: int = 600, output: int = 5, ids: tuple[int, ...] = (0, 1)) -> dict[str, object]:
    return {"timestamp": at, "input_length": tokens, "output_length": output, "hash_ids": ids}


def ids_of(row: object) -> list[int]:
    assert isinstance(row, Blocks)
    return [value for run in row.ids for value in run]


@given(st.lists(st.integers(-5, 30)))
def test_runs_say_the_same_ids_in_the_same_order(ids: list[int]) -> None:
    assert [value for run in runs(ids) for value in run] == ids


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz"])
def test_a_mooncake_trace_gives_times_in_seconds_lengths_and_blocks(tmp_path: Path, name: str) -> None:
    trace = traces.read(write(tmp_path / name, mooncake(), mooncake(3000, 1500, 7, (0, 14, 15))), limit=10)
    assert trace.timed
    assert [row.at_s for row in trace.rows] == [0.0, 3.0]
    assert trace.rows[1].prompt == Blocks(1500, (range(1), range(14, 16)), 512)
    assert trace.rows[1].output_tokens == 7


def test_reading_stops_at_the_limit(tmp_path: Path) -> None:
    assert len(traces.read(write(tmp_path / "t.jsonl", *[mooncake()] * 5, "broken"), limit=3).rows) == 3


def test_azure_times_count_from_the_first_row_and_no_two_prompts_share_a_block(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.csv",
        "TIMESTAMP,ContextTokens,GeneratedTokens",
        "2023-11-16 18:17:03.9799600,4808,10",
        "2023-11-16 18:17:04.4799600,4808,10",
    )
    first, second = traces.read(path, limit=10).rows
    assert (first.at_s, second.at_s) == (0.0, 0.5)
    assert not set(ids_of(first.prompt)) & set(ids_of(second.prompt))


def test_servegen_prompts_of_one_client_share_its_system_prompt_and_nothing_else(tmp_path: Path) -> None:
    path = write(
        tmp_path / "s.csv", "timestamp_s,client_id,input_tokens,output_tokens", "0.0,7,300,4", "0.5,7,300,4", "0.7,8,300,4"
    )
    options = traces.Options(client_prompt_tokens=100)
    first, second, other = [set(ids_of(row.prompt)) for row in traces.read(path, limit=10, options=options).rows]
    assert len(first & second) == 1
    assert not first & other
    plain = [set(ids_of(row.prompt)) for row in traces.read(path, limit=10).rows]
    assert not plain[0] & plain[1]


def test_agentic_conversations_start_one_after_the_other_keep_their_ids_apart_and_have_no_long_pauses(tmp_path: Path) -> None:
    def line(name: str) -> dict[str, object]:
        first = {"t": 0, "in": 130, "out": 3, "blocks": [[1, 2]]}
        requests = [first, {"t": 900, "in": 130, "out": 3, "blocks": [[1, 2], [9, 1]]}]
        return {"conversation_id": name, "block_size": 64, "requests": requests}

    rows = traces.read(write(tmp_path / "a.jsonl", line("x"), line("y")), limit=10).rows
    assert [(row.session, row.at_s) for row in rows] == [("x", 0.0), ("y", 30.0), ("x", 60.0), ("y", 90.0)]
    first, second = ids_of(rows[0].prompt), ids_of(rows[2].prompt)
    assert len(first) == 3, "two full blocks, and two tokens that have no id in the trace"
    assert first[:2] == second[:2]
    assert first[2] != second[2]
    assert not set(ids_of(rows[0].prompt)) & set(ids_of(rows[1].prompt))


@given(st.lists(st.floats(0, 1e5)), st.floats(0.1, 100))
def test_a_clock_with_cut_pauses_never_runs_back_and_never_jumps(times: list[float], idle_s_max: float) -> None:
    clock = Pauses(5.0, idle_s_max)
    seen = [clock.at(time) for time in times]
    assert all(0 <= after - before <= idle_s_max * (1 + 1e-9) + 1e-6 for before, after in itertools.pairwise(seen))


def chat(name: str, *roles: str) -> dict[str, object]:
    return {"id": name, "messages": [{"role": role, "content": f"{name}{place}" * 4} for place, role in enumerate(roles)]}


def test_every_assistant_message_becomes_a_request_of_everything_before_it(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", chat("a", "system", "user", "assistant", "user", "assistant", "user"))
    trace = traces.read(path, limit=10)
    prompts = [row.prompt for row in trace.rows]
    assert not trace.timed
    assert [len(prompt.items) for prompt in prompts if isinstance(prompt, Messages)] == [2, 4]
    assert trace.rows[0].output_tokens == 2  # "a2a2a2a2" at 4 characters a token


def test_conversations_without_answers_give_a_request_for_each_user_message(tmp_path: Path) -> None:
    prompts = [row.prompt for row in traces.read(write(tmp_path / "c.jsonl", chat("a", "user", "user")), limit=10).rows]
    assert [len(prompt.items) for prompt in prompts if isinstance(prompt, Messages)] == [1, 2]


def test_conversations_take_turns_and_a_finished_one_makes_room(tmp_path: Path) -> None:
    turns = ("user", "assistant") * 2
    path = write(tmp_path / "c.jsonl", chat("a", *turns), chat("b", *turns), chat("c", *turns))
    rows = traces.read(path, limit=10, options=traces.Options(at_once=2)).rows
    assert [row.session for row in rows] == ["a", "b", "a", "b", "c", "c"]


def test_edited_prompts_keep_what_they_say_and_add_the_rest(tmp_path: Path) -> None:
    lines = [
        {"conversation_id": "e", "seq": 0, "t_ms": 0, "keep": 0, "add": "hello world", "output": "abcdefgh"},
        {"conversation_id": "e", "seq": 1, "t_ms": 2000, "keep": 6, "add": "there", "output": "x"},
    ]
    rows = traces.read(write(tmp_path / "e.jsonl", *lines), limit=10).rows
    assert [(row.at_s, row.output_tokens) for row in rows] == [(0.0, 2), (2.0, 1)]
    assert rows[1].prompt == Messages([{"role": "user", "content": "hello there"}])


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ((mooncake(), '{"timestamp": 0,'), ":2: not JSON"),
        ((mooncake(), {"timestamp": 0}), ":2: Object missing required field `input_length`"),
        ((mooncake(), mooncake(tokens=5000)), ":2: 5000 input tokens need 10 hash ids, not 2"),
        (("hello",), ":1: no known trace: it begins with 'hello'"),
        (({"a": 1},), ":1: no known trace: an object with a"),
        (("{broken",), ":1: not JSON"),
        (("",), ": the file is empty"),
        (("TIMESTAMP,ContextTokens,GeneratedTokens", "yesterday,1,1"), ":2: 'yesterday' is not a time"),
        (("TIMESTAMP,ContextTokens", "x,1"), ":1: no column GeneratedTokens"),
        (("timestamp_s,client_id,input_tokens,output_tokens", "0.0,1,many,1"), ":2: 'many' is not a whole number"),
        (({"id": 1, "messages": [{"content": "x"}]},), ":1: a message without a role"),
    ],
)
def test_a_line_that_does_not_fit_is_named_by_its_number(tmp_path: Path, lines: tuple[object, ...], complaint: str) -> None:
    path = write(tmp_path / "bad.txt", *lines)
    with pytest.raises(TraceError) as caught:
        traces.read(path, limit=100)
    assert str(caught.value).startswith(f"{path}{complaint}")
    assert "\n" not in str(caught.value)


def test_a_missing_or_cut_off_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"none\.jsonl: No such file"):
        traces.read(tmp_path / "none.jsonl", limit=1)
    whole = write(tmp_path / "t.jsonl.gz", *[mooncake(at) for at in range(500)])
    whole.write_bytes(whole.read_bytes()[:-40])
    with pytest.raises(TraceError, match="cut off"):
        traces.read(whole, limit=1000)
    data = bytearray(whole.read_bytes())
    data[60:80] = b"\xff" * 20
    whole.write_bytes(data)
    with pytest.raises(TraceError, match=r"damaged|cut off|not JSON"):
        traces.read(whole, limit=1000)


def test_rows_out_of_order_are_sent_in_the_order_of_their_times(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", mooncake(3000), mooncake(0), mooncake(1000))
    assert [row.at_s for row in traces.read(path, limit=10).rows] == [0.0, 1.0, 3.0]


@pytest.mark.parametrize(
    ("name", "requests"),
    [
        ("mooncake_conversation.jsonl.gz", 1000),
        ("mooncake_synthetic.jsonl.gz", 1000),
        ("azure_llm_2023_code.csv.gz", 8819),
        ("servegen_mmid_1h.csv.gz", 2000),
    ],
)
def test_the_public_traces_are_read(shared: Path, name: str, requests: int) -> None:
    rows = traces.read(shared / "data/traces" / name, limit=requests).rows
    assert len(rows) == requests
    assert all(a.at_s <= b.at_s for a, b in itertools.pairwise(rows))


def test_the_public_agentic_trace_is_read_and_shares_what_its_conversations_repeat(shared: Path) -> None:
    rows = traces.read(shared / "data/traces/agentic_coding_a.jsonl.gz", limit=500).rows
    assert all(row.prompt.count * 64 >= row.prompt.tokens for row in rows if isinstance(row.prompt, Blocks))
    seen: set[int] = set()
    known = total = 0
    for row in rows:
        ids = ids_of(row.prompt)
        known, total = known + sum(value in seen for value in ids), total + len(ids)
        seen.update(ids)
    assert known / total > 0.5


@pytest.mark.parametrize(("name", "requests"), [("tau_bench_airline", 2454), ("mt_bench", 160), ("agent_text_a", 694)])
def test_the_public_prompt_sets_give_the_requests_that_their_readme_counts(shared: Path, name: str, requests: int) -> None:
    assert len(traces.read(shared / f"data/prompts/{name}.jsonl.gz", limit=10_000).rows) == requests
