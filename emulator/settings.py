"""What can be set on one emulated server."""

from __future__ import annotations

import math
from dataclasses import dataclass

from contract import tokens
from emulator.kv_events import FORMATS
from emulator.presets import PRESETS
from runtime import log
from runtime.settings import check_port, check_positive, setting

RANKS_MAX = 64


@dataclass(frozen=True)
class Settings:
    """One emulated vLLM server."""

    host: str = setting("127.0.0.1", "address to listen on, HTTP and KV events alike")
    port: int = setting(9001, "port of the HTTP API; 0 takes a free one")
    preset: str = setting("tiny-cpu", "engine to imitate", choices=tuple(PRESETS))
    model: str = setting("", "served model name; empty: the preset's")
    lora: tuple[str, ...] = setting((), "adapters to list: NAME or NAME=PATH")
    tokenizer: str = setting(tokens.BUILTIN, "tokenizer: the shipped one, a directory, or a hub name")
    latency: str = setting("batching", "latency model", choices=("batching", "formula"))
    speed: float = setting(1.0, "time factor: 10 is ten times as fast as the imitated engine")
    seed: int = setting(0, "changes every text; 0 for the default")
    hash_seed: int = setting(0, "seed of the engine's block hashes; 0: another one at every start")
    data_parallel_size: int = setting(1, "engines behind the port, each with a KV cache, a queue and an event port of its own")
    num_blocks: int = setting(0, "KV blocks of an engine; 0: the preset's")
    max_num_seqs: int = setting(0, "sequences that run at once; 0: the preset's")
    max_num_batched_tokens: int = setting(0, "tokens of a step; 0: the preset's")
    max_model_len: int = setting(0, "context length in tokens; 0: the preset's")
    max_num_queued_reqs: int = setting(0, "waiting requests beyond which 503 is answered; 0: no limit")
    max_num_queued_tokens: int = setting(0, "waiting prompt tokens beyond which 503 is answered; 0: no limit")
    answer_tokens_mean: int = setting(192, "where answers end by themselves, evenly between half and one and a half")
    prefix_caching: bool = setting(True, "keep blocks for reuse")
    kv_events_port: int = setting(0, "port of the KV event publisher; 0 takes a free one, -1 is off")
    kv_replay_port: int = setting(0, "port of the KV event replay socket; 0 takes a free one")
    kv_events_format: str = setting("map", "wire generation of KV events", choices=FORMATS)
    shutdown_timeout: float = setting(0.0, "seconds that running requests may go on after SIGTERM; 0 ends them at once")
    faults: bool = setting(False, "open POST /emulator/faults")
    log_level: str = setting("info", "least severe line to log", choices=log.LEVELS)
    log_format: str = setting("text", "form of the log", choices=log.FORMATS)

    def check(self) -> None:
        """ValueError: a value out of range."""
        if not 1 <= self.data_parallel_size <= RANKS_MAX:
            raise ValueError(f"--data-parallel-size: {self.data_parallel_size} is not between 1 and {RANKS_MAX}")
        last = self.data_parallel_size - 1
        check_port("port", self.port)
        check_port("kv_replay_port", self.kv_replay_port and self.kv_replay_port + last)
        if self.kv_events_port != -1:
            check_port("kv_events_port", self.kv_events_port and self.kv_events_port + last)
        check_positive(speed=self.speed, answer_tokens_mean=self.answer_tokens_mean)
        if not math.isfinite(self.speed):
            raise ValueError(f"--speed: {self.speed} must be finite")
        for name in (
            *("num_blocks", "max_num_seqs", "max_num_batched_tokens", "max_model_len"),
            *("max_num_queued_reqs", "max_num_queued_tokens", "shutdown_timeout"),
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name.replace('_', '-')}: {getattr(self, name)} must not be negative")
        names = [entry.partition("=")[0] for entry in self.lora]
        if len(set(names)) < len(names) or not all(names):
            raise ValueError("--lora: adapter names must be given and differ")
