"""One run: a fleet, a control plane, a data plane, a workload and a plan of faults, from one seed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from contract.blocks import root_hash
from contract.keyspace import BlockDelta, EngineReport, WorkerRecord
from contract.outcome import Outcome
from controlplane.question import Decision
from controlplane.ranks import Steering, steered, together
from emulator.block_pool import Event
from emulator.engine import Engine
from emulator.presets import PRESETS, Preset
from loadgen.workload import Shape
from runtime import rng
from simulation import faults
from simulation.agent import REPORT_INTERVAL_S, SimAgent
from simulation.bus import SimBus
from simulation.checks import Checker, Violation
from simulation.control import LOOK_S, Parts, SimControl
from simulation.faults import Fault
from simulation.learning import Learning, SimTrainer
from simulation.proxy import Call, Model, Proxy, Result
from simulation.timeline import Timeline
from simulation.worker import OnEvents, SimWorker
from simulation.workload import Job, Prompts

WARM_UP_S = 0.5
"""Before the first request: every agent has been heard, every index is EXACT."""
SETTLE_S = 15.0
"""After the last end: deltas and reports arrive, reservations nobody claims expire."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a run is made of. presets: one name a worker, those of one model with one block size; cache_shares: of a preset's
    KV blocks, one a worker, none for all of them; slo_ttft_ms: sent with every request, 0 for none;
    learning: None where no model is trained or served."""

    jobs: Sequence[Job]
    shape: Shape
    policy: str
    presets: tuple[str, ...]
    latency: str = "batching"
    seed: int = 1
    faults: tuple[Fault, ...] = ()
    slo_ttft_ms: float = 0.0
    kv_events: bool = True
    deep: bool = False
    parts: Parts = field(default_factory=Parts)
    cache_shares: tuple[float, ...] = ()
    learning: Learning | None = None
    controls: int = 1
    """Control planes, each with a data plane of its own; above 1 see simulation.replicas."""
    sharing: str = "all"
    """What they tell each other: of simulation.replicas.Sharing."""
    ranks: int = 1
    """Engines of each worker, data-parallel, every one as its preset says."""
    steering: Steering = steered
    """Whether requests name the rank they are for; else workers balance by themselves."""

    @property
    def name(self) -> str:
        """Of the run, in a table."""
        name = self.policy if self.controls == 1 else f"{self.policy} x{self.controls}, {self.sharing}"
        return f"{name}, not steered" if self.ranks > 1 and self.steering is together else name


@dataclass(frozen=True, slots=True)
class Report:
    """What a run came to. virtual_s: from the first arrival to the last end; busy: share of it each worker was computing."""

    policy: str
    results: list[Result]
    virtual_s: float
    wall_s: float
    events: int
    steps: int
    preemptions: int
    busy: list[float]
    loads: int
    compared_blocks: int
    compared_loads: int
    models: list[tuple[float, bytes]] = field(default_factory=list)
    """Trained in the run: virtual seconds, encoded bundle."""


class Simulation:
    """Build once, `run` once."""

    def __init__(self, setup: Setup, progress: Callable[[int], None] = lambda _: None) -> None:
        """progress: told how many requests have ended, after each. ValueError: an unknown preset or latency model."""
        self._setup = setup
        self._progress = progress
        self._timeline = Timeline()
        self._results: list[Result] = []
        self._cut_until_s = 0.0
        self._down_until_s = 0.0
        self._interrupted = False
        shares = setup.cache_shares or (1.0,) * len(setup.presets)
        presets = [with_cache(_preset(name), share) for name, share in zip(setup.presets, shares, strict=True)]
        self._workers = [
            SimWorker(f"worker-{number}", self._timeline, _engine_builder(preset, setup, number), setup.ranks)
            for number, preset in enumerate(presets)
        ]
        by_url = {worker.url: worker for worker in self._workers}
        self._agents: dict[str, SimAgent] = {}
        self._bus = SimBus(self._timeline, lambda worker: self._agents[worker].snapshot())
        self._control = SimControl(
            self._timeline,
            self._bus,
            policy=setup.policy,
            rng=rng.stream(setup.seed, "decisions"),
            parts=setup.parts,
            steering=setup.steering,
            outcome=self._outcome,
            restarted=self._control_restarted,
        )
        self._trainer = (
            None
            if setup.learning is None
            else SimTrainer(self._timeline, setup.learning, lambda: self._control.forecaster, seed=setup.seed)
        )
        served = {worker.name: (preset.model, preset.block_size) for worker, preset in zip(self._workers, presets, strict=True)}
        self._checker = Checker(by_url, self._control, deep=setup.deep, models=served)
        self._proxy = Proxy(self._timeline, self._control, by_url, self._models(presets), self)
        phases = rng.stream(setup.seed, "agents")
        for worker, preset in zip(self._workers, presets, strict=True):
            phase_s = phases.uniform(0.0, REPORT_INTERVAL_S)
            agent = SimAgent(worker, preset, self._timeline, self, phase_s=phase_s, events=setup.kv_events)
            self._agents[worker.name] = agent
            worker.on_events = self._observe(worker, worker.on_events)

    def _models(self, presets: Sequence[Preset]) -> dict[str, Model]:
        """By the names that jobs have for them."""
        setup, found = self._setup, {}
        for preset in presets:
            found[preset.model] = Model(
                preset.model,
                preset.block_size,
                Prompts(setup.shape, block_size=preset.block_size, root=root_hash(preset.model)),
                tuple(worker.url for worker, other in zip(self._workers, presets, strict=True) if other.model == preset.model),
                setup.slo_ttft_ms,
            )
        return {"": found[presets[0].model], **found}

    def run(self) -> Report:
        """Violation: something that must hold did not; the message ends with the seed."""
        setup, timeline = self._setup, self._timeline
        for fault in setup.faults:
            timeline.at(WARM_UP_S + fault.at_s, self._inflict, fault)
        if self._trainer is not None:
            self._trainer.begin(WARM_UP_S)
        self._arrivals = iter(setup.jobs)
        self._schedule_arrival()
        timeline.after(LOOK_S, self._poll)
        began = time.perf_counter()
        try:
            timeline.run(lambda: len(self._results) >= len(setup.jobs))
            ended_s = timeline.now()
            self._settle()
        except AssertionError as error:
            raise Violation(f"{error} [at {timeline.now():.6f} s, policy {setup.policy}, seed {setup.seed}]") from error
        return self._report(ended_s, time.perf_counter() - began)

    # ----------------------------------------------------------------------------------------------- what the proxy tells

    def decided(self, call: Call, decision: Decision) -> None:
        self._checker.decided(call, decision)

    def reservations_changed(self) -> None:
        self._checker.reservations_changed(self._proxy)

    def ended(self, result: Result) -> None:
        self._checker.ended(result)
        self._results.append(result)
        self._progress(len(self._results))

    # --------------------------------------------------------------------------------------------- what the agents publish

    def registered(self, record: WorkerRecord) -> None:
        self._bus.records[record.worker] = record
        self._control.registered(record)

    def reported(self, report: EngineReport) -> None:
        self._control.reported(report)

    def changed(self, worker: str, delta: BlockDelta) -> None:
        self._bus.append(worker, delta)
        self._control.changed(worker)
        agent = self._agents.get(worker)
        if agent is not None:
            self._checker.delta_sent(agent.engine, agent)

    def position(self, worker: str) -> str:
        return self._bus.position(worker)

    def _outcome(self, outcome: Outcome) -> None:
        if self._trainer is not None:
            self._trainer.record(outcome)

    def _control_restarted(self) -> None:
        if self._trainer is not None:
            self._trainer.restarted()

    def _observe(self, worker: SimWorker, then: OnEvents) -> OnEvents:
        def observe(rank: int, events: list[Event], now: float) -> None:
            self._checker.followed(worker, rank, events)
            then(rank, events, now)

        return observe

    # -------------------------------------------------------------------------------------------------------- time passes

    def _schedule_arrival(self) -> None:
        job = next(self._arrivals, None)
        if job is not None:
            self._timeline.at(WARM_UP_S + job.at_s, self._arrive, job)

    def _arrive(self, job: Job) -> None:
        self._schedule_arrival()
        self._proxy.arrive(job)

    def _poll(self) -> None:
        self._timeline.after(LOOK_S, self._poll)
        self._proxy.poll()

    def _settle(self) -> None:
        timeline = self._timeline
        end_s = max(timeline.now(), self._cut_until_s, self._down_until_s) + SETTLE_S
        timeline.run(lambda: timeline.now() >= end_s)
        self._checker.finish(self._proxy, self._agents, jobs=len(self._setup.jobs), outcomes_exact=not self._interrupted)

    def _inflict(self, fault: Fault) -> None:
        timeline = self._timeline
        match fault:
            case faults.KillEngine(worker=number, down_s=down_s):
                self._workers[number].kill()
                timeline.after(down_s, self._workers[number].restart)
            case faults.HangEngine(worker=number, for_s=for_s, rank=rank):
                self._workers[number].hang(for_s, rank)
            case faults.SlowEngine(worker=number, factor=factor):
                self._workers[number].slow_down(factor)
            case faults.SilenceAgent(worker=number, for_s=for_s):
                self._agents[self._workers[number].name].silence(for_s)
            case faults.LoseDeltas(worker=number, count=count):
                self._agents[self._workers[number].name].lose(count)
            case faults.CutStream(for_s=for_s):
                self._cut(for_s)
            case faults.RestartControl(for_s=for_s):
                self._cut(for_s)
                self._control.stop()
                self._down_until_s = max(self._down_until_s, timeline.now() + for_s)
                timeline.after(for_s, self._start_control)

    def _cut(self, for_s: float) -> None:
        self._interrupted = True
        self._cut_until_s = max(self._cut_until_s, self._timeline.now() + for_s)
        self._proxy.disconnect()
        self._timeline.at(self._cut_until_s, self._mend)

    def _start_control(self) -> None:
        if not self._control.up and self._timeline.now() >= self._down_until_s:
            self._control.restart()
            self._mend()

    def _mend(self) -> None:
        if self._timeline.now() >= self._cut_until_s and self._control.up:
            self._proxy.reconnect()

    def _report(self, ended_s: float, wall_s: float) -> Report:
        virtual_s = ended_s - WARM_UP_S
        return Report(
            policy=self._setup.name,
            results=sorted(self._results, key=lambda result: result.index),
            virtual_s=virtual_s,
            wall_s=wall_s,
            events=self._timeline.events,
            steps=sum(worker.total.steps for worker in self._workers),
            preemptions=sum(worker.total.preemptions for worker in self._workers),
            busy=[worker.total.busy_s / virtual_s for worker in self._workers],
            loads=self._control.tally.loads,
            compared_blocks=self._checker.compared_blocks,
            compared_loads=self._checker.compared_loads,
            models=[] if self._trainer is None else self._trainer.models,
        )


def _preset(name: str) -> Preset:
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


def with_cache(preset: Preset, share: float) -> Preset:
    """An engine takes no request that its cache cannot hold; one block is kept for itself."""
    if share == 1.0:
        return preset
    blocks = max(2, round(share * preset.num_blocks))
    return replace(preset, num_blocks=blocks, max_model_len=min(preset.max_model_len, (blocks - 1) * preset.block_size))


def _engine_builder(preset: Preset, setup: Setup, number: int) -> Callable[[int, int], Engine]:
    def build(incarnation: int, rank: int) -> Engine:
        name = f"engine {number} {incarnation}" + (f" {rank}" if rank else "")
        hash_seed = rng.stream(setup.seed, name).getrandbits(63)
        return Engine(preset.config(hash_seed=hash_seed), preset.latency(setup.latency))

    return build
