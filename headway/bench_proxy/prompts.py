"""The requests of a scenario as bytes: different prompts, so that no cache answers for all of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random

MODEL = "m"
PROMPTS = 20_000
LARGE_PROMPTS = 200
LARGE_CHARS_MIN = 4096
_TEXT = (
    "the of and to in is that for it with as was on be at by from this have or an they which one you had not but "
    "what all were when there can said use each their time will way about many then them write would like these her "
    "long make thing see him two has look more day could come did number sound no most people my over know water "
    "than call first who may "
)
_WORDS = _TEXT.split()


@dataclass(frozen=True)
class Scenario:
    """chunks: events of a response, 0: not streamed; pace_ms: between them; clients: connections."""

    name: str
    prompt_chars: int
    clients: int
    chunks: int = 0
    pace_ms: int = 0


def write(scenario: Scenario, path: Path, rng: Random) -> None:
    """As backend and load want it."""
    count = LARGE_PROMPTS if scenario.prompt_chars >= LARGE_CHARS_MIN else PROMPTS
    with path.open("wb") as file:
        for _ in range(count):
            request = _request(scenario, rng)
            file.write(b"%d\n%b" % (len(request), request))


def _request(scenario: Scenario, rng: Random) -> bytes:
    text = ""
    while len(text) < scenario.prompt_chars:
        text += " ".join(rng.choices(_WORDS, k=20)) + " "
    body: dict[str, object] = {"model": MODEL, "messages": [{"role": "user", "content": text[: scenario.prompt_chars]}]}
    if scenario.chunks:
        body |= {"stream": True, "max_tokens": scenario.chunks, "seed": scenario.pace_ms}
    data = json.dumps(body).encode()
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    )
    return head % len(data) + data
