"""A recorded data set becomes a workload: what is kept, what is cleaned, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from loadgen import traces, wildchat
from loadgen.errors import LoadError, TraceError
from loadgen.rows import Messages
from loadgen.wildchat import Entry, Tally, Wanted
from tests.loadgen import wildchat_rows
from tests.loadgen.wildchat_rows import conversation


def words(text: str) -> int:
    return len(text.split())


def kept(rows: list[dict[str, Any]], wanted: Wanted | None = None) -> tuple[list[Entry], Tally]:
    tally = Tally()
    return list(wildchat.select(rows, wanted or Wanted(), words, tally)), tally


def test_the_last_answered_question_becomes_the_request_and_everything_before_it_its_prompt() -> None:
    (entry,), _ = kept([conversation("c", "one two", "three", "four five six", "seven eight", "never answered")])
    assert [message["content"] for message in entry.messages] == ["one two", "three", "four five six", "seven eight"]
    assert (entry.input_tokens, entry.output_tokens, entry.turn) == (6, 2, 2)
    assert (entry.id, entry.model, entry.bucket) == ("c", "gpt-4-0314", "<128")


def test_only_the_language_that_is_wanted_is_kept() -> None:
    rows = [conversation("e", "hello", "hi"), conversation("f", "bonjour", "salut", language="French")]
    entries, tally = kept(rows)
    assert [entry.id for entry in entries] == ["e"]
    assert tally.dropped == {"language": 1}
    assert len(kept(rows, Wanted(language=""))[0]) == 2


def test_what_is_marked_as_toxic_is_left_out_unless_it_is_asked_for() -> None:
    row = conversation("t", "bad", "worse", toxic=True)
    assert kept([row])[1].dropped == {"toxic": 1}
    assert len(kept([row], Wanted(toxic=True))[0]) == 1
    one_turn = conversation("o", "bad", "worse")
    one_turn["conversation"][1]["toxic"] = True
    assert kept([one_turn])[1].dropped == {"toxic": 1}


@pytest.mark.parametrize(
    ("texts", "why"),
    [
        (("only a question",), "not question and answer in turn"),
        (("question", ""), "not question and answer in turn"),
        (("\x00\x07", "answer"), "not question and answer in turn"),
        (("q", "a", "q", "a", "q", "a"), "too many turns"),
        (("word " * 50, "a"), "too long"),
    ],
)
def test_a_conversation_that_is_no_request_is_dropped_and_counted(texts: tuple[str, ...], why: str) -> None:
    entries, tally = kept([conversation("c", *texts)], Wanted(turns_max=2, tokens_max=40))
    assert not entries
    assert tally.dropped == {why: 1}


def test_two_answers_in_a_row_are_no_conversation() -> None:
    row = conversation("c", "q", "a", "q", "a")
    row["conversation"][2]["role"] = "assistant"
    assert kept([row])[1].dropped == {"not question and answer in turn": 1}


def test_texts_are_cleaned_of_what_no_caller_types() -> None:
    (entry,), _ = kept([conversation("c", "  cafe\u0301\r\nline\x00 two\ufeff ", "answer\r")])
    assert entry.messages[0]["content"] == "café\nline two"
    assert entry.messages[1]["content"] == "answer"


def test_a_prompt_that_comes_again_is_left_out_and_so_is_what_a_full_bucket_does_not_need() -> None:
    rows = [conversation("a", "same", "x"), conversation("b", "same", "y"), conversation("c", "other", "z")]
    assert kept(rows)[1].dropped == {"the same prompt again": 1}
    entries, tally = kept(rows, Wanted(per_bucket=1))
    assert [entry.id for entry in entries] == ["a"]
    assert tally.dropped["bucket full"] == 1


def test_reading_ends_when_every_bucket_is_full() -> None:
    lengths = (10, 200, 600, 2_000)
    rows = [conversation(f"{length}-{n}", f"w{n} " * length, "a") for n in range(3) for length in lengths]
    entries, tally = kept(rows, Wanted(per_bucket=1))
    assert sorted(entry.bucket for entry in entries) == sorted(wildchat.BUCKETS)
    assert tally.read == len(lengths)


def test_a_directory_of_the_same_columns_becomes_a_workload_that_replay_and_profile_read(tmp_path: Path) -> None:
    rows = [conversation(f"c{n}", f"w{n} " * (40 * n + 1), "an answer of five words") for n in range(20)]
    source = wildchat_rows.write(tmp_path / "data", [*rows, conversation("f", "salut", "oui", language="French")])
    path = tmp_path / "out" / wildchat.FILE
    tally = wildchat.prepare(str(source), path, Wanted(), words)
    assert (tally.read, tally.total) == (21, 20)
    lines = path.read_bytes().splitlines()
    assert wildchat.is_processed(lines[0])
    assert [msgspec.json.decode(line, type=Entry).id for line in lines] == [f"c{n}" for n in range(20)]

    trace, tokens = wildchat.read(path)
    assert tokens == [40 * n + 1 for n in range(20)]
    assert all(isinstance(row.prompt, Messages) and row.output_tokens == 5 for row in trace.rows)

    replayed = traces.read(path, limit=1_000)
    assert len(replayed.rows) == 20
    assert not replayed.timed


def test_jsonl_files_do_as_well(tmp_path: Path) -> None:
    line = {"conversation": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "language": "English"}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_bytes(msgspec.json.encode(line) + b"\n")
    assert wildchat.prepare(str(tmp_path / "data"), tmp_path / wildchat.FILE, Wanted(), words).total == 1


@pytest.mark.parametrize("content", [None, {"prompt": ["a"], "answer": ["b"]}])
def test_a_data_set_that_is_not_there_or_has_other_columns_is_an_error_and_leaves_no_file(
    tmp_path: Path, content: dict[str, list[str]] | None
) -> None:
    source = tmp_path / "data"
    if content is not None:
        source.mkdir()
        (source / "train.jsonl").write_bytes(msgspec.json.encode({key: values[0] for key, values in content.items()}) + b"\n")
    with pytest.raises(LoadError, match=r"data set|column `conversation`"):
        wildchat.prepare(str(source), tmp_path / wildchat.FILE, Wanted(), words)
    assert not list(tmp_path.glob(f"{wildchat.FILE}*"))


def test_nothing_left_is_an_error_that_says_why(tmp_path: Path) -> None:
    source = wildchat_rows.write(tmp_path / "data", [conversation("f", "salut", "oui", language="French")])
    with pytest.raises(LoadError, match=r"nothing left of 1 rows \(1 language\)"):
        wildchat.prepare(str(source), tmp_path / wildchat.FILE, Wanted(), words)


def test_a_processed_file_that_was_damaged_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / wildchat.FILE
    good = msgspec.json.encode(Entry(id="a", bucket="<128", input_tokens=1, output_tokens=1, messages=[]))
    path.write_bytes(good + b"\n" + b'{"id": 3}\n')
    with pytest.raises(TraceError, match="2"):
        wildchat.read(path)
