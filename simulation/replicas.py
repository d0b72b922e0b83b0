"""Several control planes over one fleet, in virtual time: each with a data plane of its own; requests come to any of them.

What their cores tell each other travels as it does over Redis, a moment late. `Sharing` says what is told: everything, what is
in flight without guesses about caches, or nothing, as if each were alone.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from contract.keyspace import BlockDelta, EngineReport, WorkerRecord
from contract.replicas import SAY_S, Message
from controlplane.question import Decision
from controlplane.replicas import Replicas
from emulator.presets import PRESETS
from runtime import rng
from simulation.checks import Checker, hold
from simulation.control import SimControl
from simulation.proxy import Call, Proxy, Result
from simulation.workload import Job
from simulation.world import Setup, Simulation

CHANNEL_S = 0.001
"""From one control plane through Redis to another."""


class Sharing(Enum):
    """What control planes tell each other."""

    ALL = "all"
    LOADS = "loads"
    NONE = "none"


class _Pair:
    """A control plane beside the simulation's own, with its data plane. The witness of that."""

    def __init__(self, simulation: Replicated, control: SimControl, checker: Checker) -> None:
        self._simulation = simulation
        self.control = control
        self.checker = checker
        self.proxy: Proxy

    def decided(self, call: Call, decision: Decision) -> None:
        self.checker.decided(call, decision)

    def reservations_changed(self) -> None:
        self.checker.reservations_changed(self.proxy)

    def ended(self, result: Result) -> None:
        self._simulation.ended(result)


class Replicated(Simulation):
    """A run with several control planes. No faults that break one of them."""

    def __init__(self, setup: Setup, progress: Callable[[int], None] = lambda _: None) -> None:
        controls, sharing = setup.controls, Sharing(setup.sharing)
        self._pairs: list[_Pair] = []  # agents begin to speak while the rest is built
        super().__init__(setup, progress)
        by_url = {worker.url: worker for worker in self._workers}
        presets = [PRESETS[name] for name in setup.presets]
        served = {worker.name: (preset.model, preset.block_size) for worker, preset in zip(self._workers, presets, strict=True)}
        for number in range(1, controls):
            control = SimControl(
                self._timeline,
                self._bus,
                policy=setup.policy,
                rng=rng.stream(setup.seed, f"decisions {number}"),
                parts=setup.parts,
                steering=setup.steering,
            )
            pair = _Pair(self, control, Checker(by_url, control, deep=False, models=served))
            pair.proxy = Proxy(self._timeline, control, by_url, self._models(presets), pair)
            self._pairs.append(pair)
        self._proxies = [self._proxy, *[pair.proxy for pair in self._pairs]]
        self._drawn = rng.stream(setup.seed, "data planes")
        self._replicas = [
            Replicas(
                f"control-{number}",
                director=control.director,
                snapshot=control.snapshot,
                ledger=control.ledger,
                index=control.index,
                self_check=control.self_check,
                owners=lambda name=f"proxy-{number}": (name,),  # type: ignore[misc]
                guessing=sharing is Sharing.ALL,
            )
            for number, control in enumerate([self._control, *[pair.control for pair in self._pairs]])
        ]
        if sharing is not Sharing.NONE:
            for number, replicas in enumerate(self._replicas):
                self._timeline.after(SAY_S * (number + 1) / controls, self._say, replicas)

    # --------------------------------------------------------------------------------------------- what the agents publish

    def registered(self, record: WorkerRecord) -> None:
        super().registered(record)
        for pair in self._pairs:
            pair.control.registered(record)

    def reported(self, report: EngineReport) -> None:
        super().reported(report)
        for pair in self._pairs:
            pair.control.reported(report)

    def changed(self, worker: str, delta: BlockDelta) -> None:
        super().changed(worker, delta)
        for pair in self._pairs:
            pair.control.changed(worker)

    # -------------------------------------------------------------------------------------------------------- time passes

    def _arrive(self, job: Job) -> None:
        self._schedule_arrival()
        self._drawn.choice(self._proxies).arrive(job)

    def _poll(self) -> None:
        super()._poll()
        for pair in self._pairs:
            pair.proxy.poll()

    def _say(self, replicas: Replicas) -> None:
        self._timeline.after(SAY_S, self._say, replicas)
        now = self._timeline.now()
        replicas.tick(now)
        message = replicas.say(now)
        if message is not None:
            self._timeline.after(CHANNEL_S, self._hear, message)

    def _hear(self, message: Message) -> None:
        for replicas in self._replicas:
            replicas.hear(message, self._timeline.now())

    def _settle(self) -> None:
        super()._settle()
        for pair in self._pairs:
            left = len(pair.control.ledger)
            hold(left == 0, f"{left} reservations are left at another control plane after the last request")
        for control in [self._control, *[pair.control for pair in self._pairs]]:
            foreign = [url for url, load in control.ledger.loads.items() if load.foreign is not None]
            hold(not foreign, f"requests of another control plane are still counted at {', '.join(foreign)}")
