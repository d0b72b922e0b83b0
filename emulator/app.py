"""What the HTTP handlers share: the served models, the engines' drivers, limits, and the state of the process's life."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from emulator import errors
from emulator.driver import Driver
from emulator.faults import Faults
from emulator.ranks import Ranks
from emulator.texts import Texts


@dataclass(slots=True)
class App:
    """One emulated server. created: unix seconds of its start."""

    model: str
    loras: dict[str, str]
    """Adapter name to path."""
    ranks: Ranks
    texts: Texts
    created: int
    max_queued_requests: int = 0
    """Waiting requests beyond which a new one gets 503; 0 for no limit, as by default."""
    max_queued_tokens: int = 0
    kv_sources: Mapping[str, object] = field(default_factory=dict)
    faults: Faults = field(default_factory=Faults)
    is_draining: bool = False
    sleep_level: int = 0
    slow_factor: float = 1.0
    """The `slow` fault in force, as part of the engine's slowdown."""
    num_inside: int = 0
    """Requests inside this server, running or waiting (/load)."""

    @property
    def driver(self) -> Driver:
        """Of the only engine, or the first."""
        return self.ranks.drivers[0]

    @property
    def death(self) -> errors.ApiError | None:
        """Why no request is taken any more: a server does not outlive the first of its engines."""
        return next((driver.death for driver in self.ranks.drivers if driver.death is not None), None)

    @property
    def max_model_len(self) -> int:
        return self.driver.engine.config.max_model_len

    def lora_of(self, model: str) -> str:
        """The adapter that a served name stands for, "" for the base model. ApiError 404: no such name."""
        if model == self.model:
            return ""
        if model in self.loras:
            return model
        raise errors.unknown_model(model, self.model)

    def check_queue(self) -> None:
        """ApiError 503: a queue limit is set and reached."""
        if self.faults.take("busy") is not None:
            raise self._reject("max_num_queued_reqs", errors.queue_full())
        drivers = self.ranks.drivers
        if self.max_queued_requests and sum(one.num_waiting for one in drivers) >= self.max_queued_requests:
            raise self._reject("max_num_queued_reqs", errors.queue_full())
        if self.max_queued_tokens and sum(one.engine.queued_tokens for one in drivers) >= self.max_queued_tokens:
            raise self._reject("max_num_queued_tokens", errors.backlog_full())

    def _reject(self, limit: str, error: errors.ApiError) -> errors.ApiError:
        self.driver.metrics.rejections[limit].value += 1
        return error
