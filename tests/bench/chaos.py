"""A whole stack under load while its parts are killed, frozen, slowed down and made to misbehave; then the accounts are read.

    python -m tests.bench.chaos --seconds 600 --requests 20000 [--controls 2]

Method: `headway up --engine-faults` with emulated workers. Requests start at a steady rate, whatever became of those before
(open loop); some stream, some do not, some clients leave. What an engine writes depends on the prompt alone, so every answer
is compared with what an undisturbed engine said before. Faults come from one seed, one every few seconds, each kind in turn.

Every request must end in exactly one of: complete, retried and complete, an error object, a stream that ends with an error
event behind a true beginning of its text; or its client left. At the end no reservation may be left, and the accounts of
clients, data plane, control plane and outcome log must agree.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import redis.asyncio
from redis.exceptions import RedisError

from contract import keyspace, outcome
from contract.outcome import End
from runtime.tasks import stop_if_cancelled
from tests.e2e.stack import RunningStack, running_stack

PROMPTS = 48
HANG_S = 60.0
"""A request that has not ended by then hangs. Three attempts of FIRST_BYTE_S each, and waiting for room, stay below it."""
SUSPECT_S = 20.0
"""When a request has waited so long, the stack is asked what it waits for: once."""
STILL_LOOK_S = 0.1
FIRST_BYTE_S = 5.0
LEAVE_SHARE = 0.08
QUIET_S_MAX = 30.0
LAG_S = 1.5
"""How much later than its end a request's record may be in the outcome log."""
SETTINGS = {
    "HEADWAY_DATAPLANE_FIRST_BYTE_TIMEOUT_S": str(FIRST_BYTE_S),
    "HEADWAY_DATAPLANE_IDLE_TIMEOUT_S": "4",
    "HEADWAY_DATAPLANE_RETRY_PER_S": "20",
}
GOOD = ("complete", "retried and complete", "error object", "error event", "client left")


@dataclass(frozen=True)
class Job:
    """One request: what is sent, and the text that an undisturbed engine answers."""

    path: str
    body: dict[str, Any]
    text: str = ""


@dataclass
class End1:
    """How one request ended, as its client saw it."""

    kind: str
    began: float
    ended: float
    attempts: int = 0
    by_fallback: bool = False
    detail: str = ""


@dataclass
class Report:
    """What came out. problems: sentences, empty where everything holds."""

    seconds: float = 0.0
    ends: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    facts: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        requests = sum(self.ends.values())
        found = [f"{requests} requests in {self.seconds:.0f} s, {sum(self.faults.values())} faults"]
        found += [f"  {kind:<24}{self.ends[kind]:>8}" for kind in (*GOOD, *sorted(set(self.ends) - set(GOOD)))]
        found += ["faults"] + [f"  {kind:<24}{count:>8}" for kind, count in sorted(self.faults.items())]
        found += ["accounts"] + [f"  {name:<46}{value:>10.0f}" for name, value in self.facts.items()]
        return found + [f"PROBLEM: {problem}" for problem in self.problems[:20]]


def jobs(model: str, rng: random.Random) -> list[Job]:
    """A few conversations' worth of prompts that share beginnings."""
    made = []
    for number in range(PROMPTS):
        system = f"You answer for department {number % 4}. " * (10 + 10 * (number % 4))
        question = f"Question {number}: " + " ".join(
            rng.choice(("why", "when", "how", "red", "blue", "seven")) for _ in range(20)
        )
        more: dict[str, Any] = {
            "model": model,
            "max_tokens": 8 + 4 * (number % 8),
            "ignore_eos": True,
            "stream": number % 4 != 3,
        }
        if number % 5 == 4:
            made.append(Job("/v1/completions", {"prompt": system + question, **more}))
        else:
            messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
            made.append(Job("/v1/chat/completions", {"messages": messages, **more}))
    return made


def text_of(payload: dict[str, Any]) -> str:
    """The text in one JSON answer or stream event."""
    found = ""
    for choice in payload.get("choices") or ():
        part = choice.get("message") or choice.get("delta") or choice
        found += part.get("content") or part.get("text") or ""
    return found


class StandStill:
    """How long this process itself got no turn: clocks go on while a machine stands still."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._at = 0.0

    def watch(self, now: float) -> None:
        """From now on."""
        if not self._at:
            self._look(now)

    def _look(self, now: float) -> None:
        if self._at:
            self.longest_s = max(self.longest_s, now - self._at - STILL_LOOK_S)
        self._at = now
        loop = asyncio.get_running_loop()
        loop.call_later(STILL_LOOK_S, lambda: self._look(time.monotonic()))

    def __str__(self) -> str:
        return f"this process stood still for {self.longest_s:.1f} s at most"


class Clients:
    """Sends jobs and judges what comes back."""

    def __init__(
        self, stack: RunningStack, session: aiohttp.ClientSession, rng: random.Random, *, leave_share: float = LEAVE_SHARE
    ) -> None:
        self._url = stack.url
        self._leave_share = leave_share
        self._session = session
        self._stack = stack
        self._rng = rng
        self._asking: asyncio.Task[str] | None = None
        self._still = StandStill()
        self.ends: dict[str, End1] = {}
        self.told = ""
        """What the stack had to tell while the first request waited suspiciously long."""

    async def one(self, number: int, job: Job) -> None:
        request_id = f"chaos-{number}"
        leave_s = self._rng.uniform(0.003, 0.2) if self._rng.random() < self._leave_share else HANG_S
        began = time.monotonic()
        self._still.watch(began)
        suspected = asyncio.get_running_loop().call_later(SUSPECT_S, self._suspect)
        reached: list[str] = []
        try:
            async with asyncio.timeout(leave_s):
                end = await self._ask(request_id, job, began, reached)
        except TimeoutError:
            end = End1("client left" if leave_s < HANG_S else "HUNG", began, 0.0, detail=f"{reached}, {self._still}")
        except aiohttp.ClientError as error:
            end = End1("CONNECTION BROKE", began, 0.0, detail=repr(error))
        finally:
            suspected.cancel()
        end.ended = time.monotonic()
        self.ends[request_id] = end
        if self._asking is not None:
            self.told = await asyncio.shield(self._asking)

    def _suspect(self) -> None:
        if self._asking is None:
            self._asking = asyncio.get_running_loop().create_task(asyncio.to_thread(self._stack.told))

    async def _ask(self, request_id: str, job: Job, began: float, reached: list[str]) -> End1:
        """reached: how far it got."""
        headers = {"x-request-id": request_id}
        async with self._session.post(self._url + job.path, json=job.body, headers=headers) as reply:
            reached.append(f"status {reply.status}")
            raw = await reply.read()
        kind, detail = judge(reply.status, raw, job)
        attempts = int(reply.headers.get("x-headway-attempts", "0"))
        if kind == "complete" and attempts > 1:
            kind = "retried and complete"
        return End1(kind, began, 0.0, attempts, "x-headway-fallback" in reply.headers, detail)


def judge(status: int, raw: bytes, job: Job) -> tuple[str, str]:
    """What an answer is, and, where it is none of the good kinds, its text."""
    shown = f"{status} {raw[-300:]!r}"
    if status != 200:
        with suppress(ValueError, KeyError, TypeError):
            if json.loads(raw)["error"].keys() >= {"message", "type", "code"}:
                return "error object", ""
        return "MALFORMED ERROR", shown
    if not job.body["stream"]:
        return ("complete", "") if text_of(json.loads(raw)) == job.text else ("OTHER TEXT", shown)
    events = [part[6:] for part in raw.split(b"\n\n") if part.startswith(b"data: ")]
    done = bool(events) and events[-1] == b"[DONE]"
    payloads = [json.loads(event) for event in events if event != b"[DONE]"]
    errors = sum("error" in payload for payload in payloads)
    text = "".join(map(text_of, payloads))
    if errors:
        good = errors == 1 and job.text.startswith(text) and "error" in payloads[-1]
        return ("error event", "") if good else ("MALFORMED ERROR EVENT", shown)
    if not done:
        return "TRUNCATED", shown
    return ("complete", "") if text == job.text else ("OTHER TEXT", shown)


class OutcomeTail:
    """Follows the outcome log while Redis comes and goes."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.by_request: defaultdict[str, set[tuple[int, int, int, float]]] = defaultdict(set)
        self.records = 0

    async def run(self) -> None:
        last = b"0"
        while True:
            stop_if_cancelled()
            try:
                async with redis.asyncio.Redis.from_url(self._url) as client:
                    while True:
                        stop_if_cancelled()
                        found = await client.xread({keyspace.OUTCOMES: last}, count=1000, block=200)
                        for _, entries in found or ():
                            for entry, fields in entries:
                                last = entry
                                self._take(outcome.decode(fields[keyspace.OUTCOME_FIELD]))
            except (RedisError, OSError):
                last = b"0"  # a new server, empty
                await asyncio.sleep(0.05)  # it is down, on purpose

    def _take(self, record: outcome.Outcome) -> None:
        self.records += 1
        self.by_request[record.request_id].add((record.decision_id, record.attempt, record.end, record.e2e_s))


class Faults:
    """Makes things go wrong, one after the other, and puts them right."""

    def __init__(self, stack: RunningStack, session: aiohttp.ClientSession, rng: random.Random) -> None:
        self._stack = stack
        self._session = session
        self._rng = rng
        port = urlsplit(stack.url).port
        assert port is not None
        self._engines = [f"http://127.0.0.1:{port + 3 + number}" for number in range(stack.workers)]
        self._controls = [name for name in stack.child_pids() if name.startswith("controlplane")]
        self.done: Counter[str] = Counter()
        self.blind: list[tuple[float, float]] = []
        """When records may have been lost with the process that held them: (from, to), monotonic."""
        self._kinds: dict[str, Callable[[], Awaitable[None]]] = {
            "engine killed": self._kill_engine,
            "engine frozen": self._freeze_engine,
            "engine hung": lambda: self._order(kind="hang", seconds=4),
            "engine slow": self._slow_engine,
            "reset before headers": lambda: self._order(kind="reset_before_headers", count=10),
            "reset amid streams": lambda: self._order(kind="reset_mid_stream", count=6, after_events=self._rng.randint(0, 6)),
            "truncated": lambda: self._order(kind="truncate", count=6, after_events=3, clean=self._rng.random() < 0.5),
            "silent": lambda: self._order(kind="silent", count=3),
            "busy": lambda: self._order(kind="busy", count=30),
            "agent killed": self._kill_agent,
            "control plane killed": lambda: self._kill(self._rng.choice(self._controls), signal.SIGKILL),
            "control plane restarted": lambda: self._kill(self._rng.choice(self._controls), signal.SIGTERM),
            "redis killed": lambda: self._kill("redis", signal.SIGKILL),
        }
        if len(self._controls) > 1:
            self._kinds["control plane frozen"] = self._freeze_control

    async def run(self, until: float) -> None:
        pause_s = max(1.0, min(5.0, (until - time.monotonic()) / (2 * len(self._kinds))))
        order = list(self._kinds)
        while True:
            self._rng.shuffle(order)
            for kind in order:
                await asyncio.sleep(self._rng.uniform(0.5, 1.5) * pause_s)  # from one fault to the next
                if time.monotonic() > until - 8.0:
                    return
                with suppress(aiohttp.ClientError, ProcessLookupError, TimeoutError):
                    await self._kinds[kind]()
                    self.done[kind] += 1

    async def put_right(self) -> None:
        for url in self._engines:
            with suppress(aiohttp.ClientError, TimeoutError):
                await self._tell(url, kind="clear")

    def _pid(self, name: str) -> int:
        pids = self._stack.child_pids().get(name, [])
        if not pids:
            raise ProcessLookupError(name)
        return pids[0]

    def _engine_pid(self) -> int:
        return self._pid("engine@" + self._rng.choice(self._engines).rpartition(":")[2])

    async def _kill(self, name: str, number: int) -> None:
        at = time.monotonic()
        os.kill(self._pid(name), number)
        self.blind.append((at - LAG_S, at + 12.0))

    async def _kill_engine(self) -> None:
        os.kill(self._engine_pid(), signal.SIGKILL)

    async def _kill_agent(self) -> None:
        os.kill(self._pid(f"agent-{self._rng.randint(1, self._stack.workers)}"), signal.SIGKILL)

    async def _freeze_control(self) -> None:
        at = time.monotonic()
        await self._freeze(self._pid(self._rng.choice(self._controls)))
        self.blind.append((at - LAG_S, time.monotonic() + LAG_S))

    async def _freeze_engine(self) -> None:
        await self._freeze(self._engine_pid())

    async def _freeze(self, pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(self._rng.uniform(2.0, 7.0))  # how long it stands still
        finally:
            os.kill(pid, signal.SIGCONT)

    async def _slow_engine(self) -> None:
        url = self._rng.choice(self._engines)
        await self._tell(url, kind="slow", factor=8)
        await asyncio.sleep(self._rng.uniform(2.0, 5.0))  # how long it is slow
        await self._tell(url, kind="clear")

    async def _order(self, **fault: Any) -> None:
        await self._tell(self._rng.choice(self._engines), **fault)

    async def _tell(self, url: str, **fault: Any) -> None:
        async with asyncio.timeout(5), self._session.post(url + "/emulator/faults", json=fault) as reply:
            assert reply.status < 300, await reply.text()


async def _metrics(session: aiohttp.ClientSession, url: str) -> dict[str, float]:
    """Sums over labels, by metric name."""
    async with session.get(url + "/metrics") as reply:
        page = await reply.text()
    sums: defaultdict[str, float] = defaultdict(float)
    for name, labels, value in re.findall(r"^(\w+)(\{.*\})? (\S+)$", page, re.MULTILINE):
        sums[name] += float(value)
        for path in ("/v1/chat/completions", "/v1/completions"):
            if f'path="{path}"' in labels:
                sums[name + " routed"] += float(value)
    return sums


async def _expected(engine: str, session: aiohttp.ClientSession, todo: list[Job]) -> list[Job]:
    made = []
    for job in todo:
        async with session.post(engine + job.path, json=job.body | {"stream": False}) as reply:
            assert reply.status == 200, await reply.text()
            made.append(Job(job.path, job.body, text_of(await reply.json())))
    return made


async def storm(stack: RunningStack, *, seconds: float, requests: int, seed: int) -> Report:
    """The load, the faults, the accounts."""
    rng = random.Random(seed)
    report = Report()
    port = urlsplit(stack.url).port or 0
    timeout = aiohttp.ClientTimeout(total=HANG_S + 10)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        async with session.get(stack.url + "/v1/models") as reply:
            model = (await reply.json())["data"][0]["id"]
        todo = await _expected(f"http://127.0.0.1:{port + 3}", session, jobs(model, rng))
        tail = OutcomeTail(f"unix://{stack.facts()['sockets']}/redis.sock")
        tailing = asyncio.create_task(tail.run())
        clients, faults = Clients(stack, session, rng), Faults(stack, session, random.Random(seed + 1))
        began = time.monotonic()
        breaking = asyncio.create_task(faults.run(began + seconds))
        tasks = []
        for number in range(requests):
            due = began + number * seconds / requests
            if due > time.monotonic():
                await asyncio.sleep(due - time.monotonic())  # open loop: each is sent when it is due
            tasks.append(asyncio.create_task(clients.one(number, rng.choice(todo))))
        await asyncio.gather(*tasks)
        await breaking
        await faults.put_right()
        report.seconds = time.monotonic() - began
        await _settle(stack, session, port, report)
        await asyncio.sleep(LAG_S)  # a record too many would come now
        tailing.cancel()
        await asyncio.gather(tailing, return_exceptions=True)
        report.faults = faults.done
        report.ends.update(end.kind for end in clients.ends.values())
        await _accounts(stack, session, port, clients, tail, faults, report)
    return report


async def _settle(stack: RunningStack, session: aiohttp.ClientSession, port: int, report: Report) -> None:
    """Until nothing is in flight anywhere, and all workers are back."""
    until = time.monotonic() + QUIET_S_MAX
    state = ""
    while time.monotonic() < until:
        try:
            workers = await asyncio.to_thread(stack.list_workers)
            controls = [await _metrics(session, url) for url in _control_urls(stack, port)]
            proxy = await _metrics(session, stack.url)
        except Exception as error:  # still coming up
            state = repr(error)
        else:
            active = sum(worker.active for worker in workers.workers)
            alive = sum(worker.alive for worker in workers.workers)
            reservations = sum(one["headway_reservations"] + one["headway_worker_active_elsewhere"] for one in controls)
            flying = proxy["headway_proxy_requests_in_flight"]
            state = f"{active} active, {reservations:.0f} reservations, {flying:.0f} in flight, {alive} workers alive"
            if not active and not reservations and not flying and alive == stack.workers:
                return
        await asyncio.sleep(0.25)  # figures of other processes, bounded by QUIET_S_MAX
    report.problems.append(f"not at rest {QUIET_S_MAX:.0f} s after the end: {state}")


async def _accounts(
    stack: RunningStack,
    session: aiohttp.ClientSession,
    port: int,
    clients: Clients,
    tail: OutcomeTail,
    faults: Faults,
    report: Report,
) -> None:
    """facts, and a problem for each that does not add up."""
    ends, say = report.ends, report.problems.append
    for request_id, end in clients.ends.items():
        if end.kind not in GOOD:
            say(f"{request_id}: {end.kind} {end.detail}")
    proxy = await _metrics(session, stack.url)
    controls = [await _metrics(session, url) for url in _control_urls(stack, port)]
    sent, left = sum(ends.values()), ends["client left"]
    answered = proxy["headway_proxy_requests_total routed"]
    report.facts |= {
        "requests sent by clients": sent,
        "requests counted by the data plane": answered,
        "attempts at engines": proxy["headway_proxy_attempts_total"],
        "attempts after the first": proxy["headway_proxy_retries_total"],
        "decisions by the fallback": sum(end.by_fallback for end in clients.ends.values()),
        "outcome records read": tail.records,
    }
    if not sent - left <= answered <= sent:
        say(f"{sent} requests were sent ({left} of whose clients left), the data plane counted {answered:.0f}")
    if proxy["headway_proxy_outcomes_dropped_total"]:
        say(f"the data plane dropped {proxy['headway_proxy_outcomes_dropped_total']:.0f} outcomes")
    names = ("headway_outcomes_written_total", "headway_outcomes_dropped_total")
    records = sum(control[name] for control in controls for name in names)
    ended = sum(control["headway_request_ends_total"] + control["headway_sheds_total"] for control in controls)
    report.facts |= {"ends and refusals, control planes up at the end": ended, "records it wrote": records}
    if not ended <= records <= ended + 50:  # records of workers that were not known yet have no end to count under
        say(f"the control plane counted {ended:.0f} ends and refusals, and wrote {records:.0f} records")
    _compare(clients, tail, faults, report)


def _compare(clients: Clients, tail: OutcomeTail, faults: Faults, report: Report) -> None:
    """Every request's records against what its client saw, but for those in flight while a keeper of records died."""
    checked = wrong = twice = 0
    for request_id, end in clients.ends.items():
        records = tail.by_request.get(request_id, set())
        completes = sum(record[2] == End.COMPLETE for record in records)
        twice += completes > 1
        if end.kind not in ("complete", "retried and complete"):
            continue
        if any(end.began - LAG_S < until and end.ended + LAG_S > since for since, until in faults.blind):
            continue
        checked += 1
        tries = sum(record[2] != End.SHED for record in records)
        overtaken = sum(record[2] == End.CLIENT_GONE for record in records)  # with hedging: the slower of two
        if completes != 1 or not tries - overtaken <= end.attempts <= tries:
            wrong += 1
            report.problems.append(
                f"{request_id}: {end.kind} after {end.attempts} attempts, the log has {sorted(End(r[2]).name for r in records)}"
            )
    report.facts |= {"complete requests compared with their records": checked, "of these different": wrong}
    report.facts["requests with two records of completion"] = twice
    if twice:
        report.problems.append(f"{twice} requests have two records of completion")


def _control_urls(stack: RunningStack, port: int) -> list[str]:
    """Of their metrics."""
    count = 1 + ("--controls" in stack.process.args)  # type: ignore[operator]
    return [f"http://127.0.0.1:{port + 2 + 100 * number}" for number in range(count)]


def chaos(home: Path, *, seconds: float, requests: int, seed: int, workers: int = 4, controls: int = 1) -> Report:
    """A stack of its own, from start to end. controls: 1 or 2."""
    arguments = ("--engine-faults", "--speed", "4", *(("--controls", "2") if controls > 1 else ()))
    with running_stack(home, *arguments, workers=workers, environment=SETTINGS) as stack:
        return asyncio.run(storm(stack, seconds=seconds, requests=requests, seed=seed))


def run(arguments: list[str] | None = None) -> int:
    """0: everything held."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.chaos")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--controls", type=int, choices=(1, 2), default=1)
    parser.add_argument("--seed", type=int, default=20_261_121)
    asked = parser.parse_args(arguments or [])
    print(f"seed {asked.seed}, {asked.workers} emulated workers; method: python -m pydoc tests.bench.chaos", flush=True)
    with tempfile.TemporaryDirectory(prefix="chaos-") as home:
        report = chaos(
            Path(home),
            seconds=asked.seconds,
            requests=asked.requests,
            seed=asked.seed,
            workers=asked.workers,
            controls=asked.controls,
        )
        log = Path(home, "up.log")
        if report.problems and log.exists():
            kept = Path(tempfile.gettempdir(), "chaos-up.log")
            kept.write_bytes(log.read_bytes())
            print(f"log kept in {kept}")
            if (told := Path(home, "told.txt")).exists():
                print(told.read_text())
    print("\n".join(report.lines()), flush=True)
    return 1 if report.problems else 0


if __name__ == "__main__":
    raise SystemExit(run(sys.argv[1:]))
