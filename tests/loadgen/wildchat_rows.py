"""A data set of a few conversations in the columns of WildChat-1M, as its card lists them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

WHEN = datetime(2024, 5, 1, tzinfo=UTC)
_TIME = pa.timestamp("us", tz="UTC")
_HEADER = pa.struct([("accept-language", pa.string()), ("user-agent", pa.string())])
_TURN = pa.struct(
    [
        ("content", pa.string()),
        ("country", pa.string()),
        ("hashed_ip", pa.string()),
        ("header", _HEADER),
        ("language", pa.string()),
        ("redacted", pa.bool_()),
        ("role", pa.string()),
        ("state", pa.string()),
        ("timestamp", _TIME),
        ("toxic", pa.bool_()),
        ("turn_identifier", pa.int64()),
    ]
)
_CATEGORIES = ("harassment", "hate", "self-harm", "sexual", "violence")
_MODERATION = pa.struct(
    [
        ("categories", pa.struct([(name, pa.bool_()) for name in _CATEGORIES])),
        ("category_scores", pa.struct([(name, pa.float64()) for name in _CATEGORIES])),
        ("flagged", pa.bool_()),
    ]
)
SCHEMA = pa.schema(
    [
        ("conversation_hash", pa.string()),
        ("model", pa.string()),
        ("timestamp", _TIME),
        ("conversation", pa.list_(_TURN)),
        ("turn", pa.int64()),
        ("language", pa.string()),
        ("openai_moderation", pa.list_(_MODERATION)),
        ("detoxify_moderation", pa.list_(pa.struct([("toxicity", pa.float64()), ("insult", pa.float64())]))),
        ("toxic", pa.bool_()),
        ("redacted", pa.bool_()),
        ("state", pa.string()),
        ("country", pa.string()),
        ("hashed_ip", pa.string()),
        ("header", _HEADER),
    ]
)


def conversation(name: str, *texts: str, language: str = "English", toxic: bool = False) -> dict[str, Any]:
    """texts: of the user and the assistant in turn, the user first."""
    turns = [
        {
            "content": text,
            "country": "Portugal",
            "hashed_ip": "0" * 64,
            "header": {"accept-language": "en-US", "user-agent": "test"} if place % 2 == 0 else None,
            "language": language,
            "redacted": False,
            "role": ("user", "assistant")[place % 2],
            "state": None,
            "timestamp": WHEN,
            "toxic": toxic,
            "turn_identifier": place,
        }
        for place, text in enumerate(texts)
    ]
    return {
        "conversation_hash": name,
        "model": "gpt-4-0314",
        "timestamp": WHEN,
        "conversation": turns,
        "turn": len(texts) // 2,
        "language": language,
        "openai_moderation": [],
        "detoxify_moderation": [],
        "toxic": toxic,
        "redacted": False,
        "state": None,
        "country": "Portugal",
        "hashed_ip": "0" * 64,
        "header": {"accept-language": "en-US", "user-agent": "test"},
    }


def write(directory: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """As the hub has them: Parquet files in a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows), schema=SCHEMA), directory / "train-00000-of-00001.parquet")
    return directory
