"""POST /v1/completions, /v1/chat/completions, /v1/responses, /v1/messages, /v1/embeddings: from body to answer."""

from __future__ import annotations

import asyncio
import base64
import math
import random
import time
import uuid
from array import array
from collections.abc import Sequence

from aiohttp import web

from emulator import calls, errors, prompts
from emulator.app import App
from emulator.block_pool import Origin
from emulator.calls import Call
from emulator.driver import Driver
from emulator.errors import ApiError
from emulator.faults import Fault
from emulator.ranks import HEADER_PATHS, RANK_HEADER
from emulator.reply import Reply
from emulator.sequence import FinishReason, Request
from emulator.sequence import Sequence as EngineSequence
from emulator.streaming import EventWriter, open_stream, reset
from emulator.wire import ChatStyle, CompletionStyle, Head, Style, Totals, dumps
from emulator.wire_events import MessagesStyle, ResponsesStyle

EMBEDDING_SIZE = 64
"""Numbers in an embedding."""

_PREFIX = {
    calls.COMPLETIONS: "cmpl-",
    calls.CHAT: "chatcmpl-",
    calls.RESPONSES: "resp_",
    calls.MESSAGES: "chatcmpl-",
    calls.EMBEDDINGS: "embd-",
}
_MID_STREAM = ("silent", "reset_mid_stream", "truncate")


class Generate:
    """The handlers that use the engine."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._serial = 0

    async def handle(self, http: web.Request) -> web.StreamResponse:
        """One call, whatever its path."""
        app = self._app
        app.num_inside += 1
        try:
            if app.faults.take("reset_before_headers") is not None:
                reset(http.transport)
                raise asyncio.CancelledError
            return await self._answer(http)
        finally:
            app.num_inside -= 1

    async def _answer(self, http: web.Request) -> web.StreamResponse:
        app = self._app
        media = http.content_type if "content-type" in http.headers else ""
        raw = await http.read()
        if raw and media != "application/json" and not media.endswith("+json"):
            raise errors.unsupported_media_type()
        body = calls.decode_body(raw)
        call = calls.parse(http.path, body, app.model)
        lora = app.lora_of(call.model)
        if (death := app.death) is not None:
            raise death
        tokens = prompts.tokenize(call.path, body, app.texts)
        is_embedding = call.path == calls.EMBEDDINGS
        session = str(body.get("session_id") or http.headers.get("x-session-id", ""))
        prompts.check(
            tokens,
            max_model_len=app.max_model_len,
            vocab_size=app.texts.vocab_size,
            max_tokens=0 if is_embedding else call.max_tokens,
        )
        app.check_queue()
        requests = self._requests(call, Origin(lora, call.cache_salt, session), tokens, is_embedding=is_embedding)
        head = Head(_id(call.path, http), call.model, int(time.time()))
        named, refusal = None, None
        try:
            named = app.ranks.named(http.headers.get(RANK_HEADER)) if call.path in HEADER_PATHS else None
        except ApiError as error:
            refusal = error
        rank = app.ranks.choose(named, time.monotonic())
        driver = app.ranks.drivers[rank]
        try:
            if is_embedding:
                return await self._embed(driver, call, head, tokens, requests)
            driver.metrics.request(n=call.n, max_tokens=requests[0].max_tokens)
            return await self._generate(http, driver, call, head, tokens, requests, refusal)
        finally:
            app.ranks.ended(rank)

    def _requests(self, call: Call, origin: Origin, tokens: Sequence[bytes], *, is_embedding: bool) -> list[Request]:
        requests = []
        for prompt in tokens:
            room = self._app.max_model_len - len(prompt) // 4
            for sample in range(call.n):
                self._serial += 1
                requests.append(
                    Request(
                        request_id=f"r{self._serial}",
                        prompt=prompt,
                        max_tokens=0 if is_embedding else min(call.max_tokens or room, room),
                        min_tokens=call.min_tokens,
                        ignore_eos=call.ignore_eos,
                        stop_token_ids=call.stop_token_ids,
                        seed=(call.seed + sample * 0x9E3779B97F4A7C15) & ((1 << 64) - 1),
                        origin=origin,
                        kv_report_full=call.kv_report_full,
                    )
                )
        return requests

    async def _generate(
        self,
        http: web.Request,
        driver: Driver,
        call: Call,
        head: Head,
        tokens: Sequence[bytes],
        requests: list[Request],
        refusal: ApiError | None,
    ) -> web.StreamResponse:
        """refusal: the engine's, which comes when a stream has begun already."""
        app = self._app
        done = asyncio.Event()
        response: web.StreamResponse | None = None
        writer: EventWriter | None = None
        if call.stream:
            response = await open_stream(http)
            writer = EventWriter(http, self._stream_fault(), done.set)
        block_size = app.driver.engine.config.block_size
        totals = Totals(
            prompt_tokens=sum(len(prompt) // 4 for prompt in tokens),
            cached_tokens=0,
            created_tokens=sum(len(prompt) // 4 // block_size * block_size for prompt in tokens),
        )
        reply = Reply(
            call,
            _style(call, head, tokens),
            app.texts,
            totals=totals,
            num_choices=len(requests),
            write=writer,
            on_done=done.set,
            named_events=call.path in (calls.MESSAGES, calls.RESPONSES),
        )
        if call.echo:
            for index in range(len(requests)):
                reply.echo(index, self._prompt_text(call.body["prompt"], tokens, index // call.n))
        if refusal is None:
            await self._run(driver, reply, requests, done)
        else:
            reply.fail(refusal)
        if response is not None and writer is not None:
            if writer.is_silent:
                # Open and silent until the client has had enough.
                await asyncio.get_running_loop().create_future()
            if writer.is_cut and (http.transport is None or http.transport.is_closing()):
                raise asyncio.CancelledError
            await response.write_eof()
            return response
        if reply.failure is not None:
            raise reply.failure
        return web.Response(body=reply.body(), content_type="application/json", headers=_load_header(http, app))

    async def _run(self, driver: Driver, reply: Reply, requests: list[Request], done: asyncio.Event) -> None:
        """Until the answer is complete, or the client is gone (this coroutine is cancelled then)."""
        if self._app.is_draining:
            reply.abort()
            return
        driver.submit(reply, requests)
        try:
            await done.wait()
        finally:
            driver.cancel([request.request_id for request in requests])

    async def _embed(
        self, driver: Driver, call: Call, head: Head, tokens: Sequence[bytes], requests: list[Request]
    ) -> web.StreamResponse:
        sink = _Prefilled(len(requests))
        driver.submit(sink, requests)
        try:
            await sink.done.wait()
        finally:
            driver.cancel([request.request_id for request in requests])
        if sink.failure is not None:
            raise sink.failure
        as_text = call.body.get("encoding_format") == "base64"
        data = [
            {"index": index, "object": "embedding", "embedding": _embedding(prompt, as_text=as_text)}
            for index, prompt in enumerate(tokens)
        ]
        count = sum(len(prompt) // 4 for prompt in tokens)
        usage = {"prompt_tokens": count, "total_tokens": count, "completion_tokens": 0, "prompt_tokens_details": None}
        answer = {"id": head.id, "object": "list", "created": head.created, "model": head.model, "data": data, "usage": usage}
        return web.Response(body=dumps(answer), content_type="application/json")

    def _prompt_text(self, given: object, tokens: Sequence[bytes], index: int) -> str:
        """A prompt as the caller wrote it; token ids as text."""
        if isinstance(given, str):
            return given
        if isinstance(given, list) and isinstance(given[index], str):
            return str(given[index])
        return self._app.texts.tokenizer.decode(array("I", tokens[index]))

    def _stream_fault(self) -> Fault | None:
        for kind in _MID_STREAM:
            fault = self._app.faults.take(kind)
            if fault is not None:
                return fault
        return None


class _Prefilled:
    """Waits until every prompt of a call was computed."""

    def __init__(self, count: int) -> None:
        self._left = count
        self.done = asyncio.Event()
        self.failure: ApiError | None = None

    def started(self, index: int, sequence: EngineSequence) -> None:
        """Embeddings report no cached tokens."""

    def ended(self, index: int, sequence: EngineSequence) -> None:
        """Nor timings."""

    def deliver(self, index: int, token: int, finish: FinishReason | None) -> bool:
        self._left -= finish is not None
        if self._left == 0:
            self.done.set()
        return False

    def abort(self) -> None:
        self.fail(errors.engine_dead())

    def fail(self, error: ApiError) -> None:
        self.failure = error
        self.done.set()


def _id(path: str, http: web.Request) -> str:
    given = http.headers.get("x-request-id")
    return _PREFIX[path] + (given or uuid.uuid4().hex[:16])


def _style(call: Call, head: Head, tokens: Sequence[bytes]) -> Style:
    if call.path == calls.MESSAGES:
        return MessagesStyle(head)
    if call.path == calls.RESPONSES:
        return ResponsesStyle(head, call.body, f"msg_{uuid.uuid4().hex[:16]}")
    kind = ChatStyle if call.path == calls.CHAT else CompletionStyle
    return kind(
        head,
        include_usage=call.include_usage,
        continuous_usage=call.continuous_usage,
        token_ids=call.return_token_ids,
        prompt_ids=[array("I", prompt).tolist() for prompt in tokens] if call.return_token_ids else [],
    )


def _embedding(prompt: bytes, *, as_text: bool) -> list[float] | str:
    """A unit vector that depends on the prompt alone; base64 of float32 where asked for."""
    rng = random.Random(prompt)
    values = [rng.gauss(0.0, 1.0) for _ in range(EMBEDDING_SIZE)]
    norm = math.sqrt(sum(value * value for value in values))
    vector = array("f", (value / norm for value in values))
    return base64.b64encode(vector.tobytes()).decode() if as_text else vector.tolist()


def _load_header(http: web.Request, app: App) -> dict[str, str]:
    """ORCA's load report, where the request asks for it (not on streams)."""
    format = http.headers.get("endpoint-load-metrics-format", "").upper()
    metrics = [driver.metrics for driver in app.ranks.drivers]
    waiting, usage = float(sum(one.waiting.value for one in metrics)), float(max(one.usage.value for one in metrics))
    if format == "JSON":
        named = f'{{"num_requests_waiting": {waiting}, "kv_cache_usage_perc": {usage}}}'
        return {"endpoint-load-metrics": f'JSON {{"named_metrics": {named}}}'}
    if format == "TEXT":
        text = f"TEXT named_metrics.num_requests_waiting={waiting}, named_metrics.kv_cache_usage_perc={usage}"
        return {"endpoint-load-metrics": text}
    return {}
