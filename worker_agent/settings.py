"""What an agent is told: flags, or HEADWAY_WORKER_AGENT_* in the environment."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from contract.keyspace import WORKER_TTL_MS
from runtime.log import FORMATS, LEVELS
from runtime.settings import check_positive, setting
from runtime.shared_settings import BusSettings

AUTO = "auto"
OFF = "off"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
_ENDPOINT = re.compile(r"(tcp://.+:\d+|ipc://.+)")


@dataclass(frozen=True)
class Settings(BusSettings):
    """Reports for one vLLM: its load, its KV blocks, its registration."""

    worker: str = setting("", "name of this worker, unique in the fleet")
    engine_url: str = setting("http://127.0.0.1:9001", "base URL of the vLLM beside this agent")
    advertise_url: str = setting("", "base URL under which routers reach that vLLM; empty: the engine URL")
    kv_events: str = setting(AUTO, "where rank 0 publishes its KV events: auto (ask the engine), off, or tcp://host:port")
    kv_replay: str = setting(AUTO, "where it replays them: auto (ask the engine), off, or tcp://host:port")
    ttl_ms: int = setting(WORKER_TTL_MS, "how long the registration outlives this agent")
    tokenizer: str = setting("", "tokenizer's path or hub name; empty: the model's root as the engine says it")
    accelerator: str = setting("", "kind of accelerator, for the routers' models")
    scrape_interval_ms: int = setting(100, "between two reads of /metrics, and between two reports")
    engine_api_key: str = setting("", "where the engine's /v1 routes want one", env="VLLM_API_KEY", secret=True)
    engine_ca: str = setting("", "authority of an https:// engine; empty: the system's")
    log_level: str = setting("info", "least severe line that is logged", choices=LEVELS)
    log_format: str = setting("text", "form of a log line", choices=FORMATS)

    def check(self) -> None:
        """ValueError: a value that cannot work."""
        if not _NAME.fullmatch(self.worker):
            raise ValueError(f"--worker: {self.worker!r} is no name (1 to 128 letters, digits, dots, dashes, underscores)")
        _check_http("--engine-url", self.engine_url)
        if self.advertise_url:
            _check_http("--advertise-url", self.advertise_url)
        self.check_bus()
        for flag, value in (("--kv-events", self.kv_events), ("--kv-replay", self.kv_replay)):
            if value not in (AUTO, OFF) and not _ENDPOINT.fullmatch(value):
                raise ValueError(f"{flag}: {value!r} is none of auto, off, tcp://host:port")
        check_positive(ttl_ms=self.ttl_ms, scrape_interval_ms=self.scrape_interval_ms)
        if self.ttl_ms < 3 * self.scrape_interval_ms:
            raise ValueError(f"--ttl-ms: {self.ttl_ms} is less than three reports ({3 * self.scrape_interval_ms} ms)")

    @property
    def url(self) -> str:
        """What routers are told."""
        return (self.advertise_url or self.engine_url).rstrip("/")


def _check_http(flag: str, url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{flag}: {url!r} is no http:// URL")
