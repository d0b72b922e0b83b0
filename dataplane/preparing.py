"""From a request's body to what is asked about it: the model and a few fields, token ids, block hashes. What is large is read
and tokenised in a process of its own, or in a thread."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import msgspec

from dataplane import encoding, errors, forms, wishes
from dataplane.errors import ApiError
from dataplane.gateway import Gateway
from dataplane.http1 import Request
from dataplane.limits import BODY_BYTES_PER_TOKEN, Permit
from dataplane.openai import PROMPT_PATHS, SLICED_BYTES_MIN, Ask, FormAsk, read_ask, read_json
from dataplane.prompt_messages import Answer
from dataplane.prompt_process import APART_BYTES_MIN, PromptProcess
from dataplane.prompts import UNREAD, Prompt, skipped

log = logging.getLogger(__name__)
T = TypeVar("T")
Done: TypeAlias = Callable[["Ask | ApiError", "Prompt | None"], None]

READ_INLINE_BYTES_MAX = SLICED_BYTES_MIN
"""Bodies up to this size are read on the event loop: 0.1 ms, 0.7 where all of it is escapes."""

QUICK_BYTES_MAX = 4 * 1024
"""Prompts of bodies up to this size are read on the event loop, whatever reads them."""


def read(gateway: Gateway, request: Request, permit: Permit | None, done: Done) -> None:
    """Calls `done` with the fields that routing needs, or why the request is refused: at once, or later. With them comes the
    prompt where it was prepared in the same go."""
    if request.forwarded is None:  # else its head is known to hold no wishes
        wished = wishes.read(request.headers)
        if isinstance(wished, ApiError):
            done(wished, None)
            return
    if b"content-encoding" in request.fields:
        # Never on the loop: a kilobyte may become a megabyte.
        _in_thread(
            gateway, lambda: _uncompress(gateway, request), lambda refusal: _read_on(gateway, request, permit, done, refusal)
        )
    else:
        _read_on(gateway, request, permit, done, None)


def _read_on(gateway: Gateway, request: Request, permit: Permit | None, done: Done, refusal: ApiError | None) -> None:
    """The body as it is without compression, which `refusal` says that it cannot be had of."""
    process = gateway.prompt_process
    if refusal is not None:
        done(refusal, None)
    elif process is not None and _goes_apart(gateway, request) and process.ready:
        _read_apart(process, gateway, request, permit, done)
    elif len(request.body) <= READ_INLINE_BYTES_MAX:
        done(_checked(gateway, _read(gateway, request, permit), permit), None)
    else:
        _read_in_thread(gateway, request, permit, done, None)


def _goes_apart(gateway: Gateway, request: Request) -> bool:
    if len(request.body) <= APART_BYTES_MIN or request.path not in PROMPT_PATHS or not gateway.prompts.wanted:
        return False
    return request.forwarded is not None or not request.get(b"content-type").lower().startswith(b"multipart/")


def _read_apart(process: PromptProcess, gateway: Gateway, request: Request, permit: Permit | None, done: Done) -> None:
    """Read and prepared in the process for long prompts."""
    began = gateway.clock.now()

    def answered(answer: Answer) -> None:
        found = answer.refusal or answer.ask
        if found is None:
            _read_in_thread(gateway, request, permit, done, answer.prompt)
            return
        if answer.prompt is not None:
            _prepared_beside(gateway, "process", began)
        done(_checked(gateway, found, permit), answer.prompt)

    process.submit(request.path, request.body, answered)


def _read_in_thread(gateway: Gateway, request: Request, permit: Permit | None, done: Done, prompt: Prompt | None) -> None:
    _in_thread(
        gateway, lambda: _read_or_fail(gateway, request, permit), lambda ask: done(_checked(gateway, ask, permit), prompt)
    )


def _prepared_beside(gateway: Gateway, by: str, began: float) -> None:
    gateway.metrics.prompts_beside.add(by)
    gateway.metrics.prompt.observe(gateway.clock.now() - began)


def _in_thread(gateway: Gateway, work: Callable[[], T], done: Callable[[T], None]) -> None:
    loop = asyncio.get_running_loop()
    future = gateway.executor.submit(work)
    future.add_done_callback(lambda found: found.cancelled() or loop.call_soon_threadsafe(done, found.result()))


def _uncompress(gateway: Gateway, request: Request) -> ApiError | None:
    return _or_fail(request, lambda: encoding.decode(request, gateway.settings.body_bytes_max))


def _read(gateway: Gateway, request: Request, permit: Permit | None) -> Ask | ApiError:
    if request.forwarded is not None:
        return read_json(request.body, request.path)
    ask = read_ask(request, gateway.settings.body_bytes_max)
    if isinstance(ask, FormAsk) and permit is not None and permit.key.models and not forms.names_once(request.body, ask.model):
        return errors.bad_request('A form must name its model once, as name="model".', param="model", code="model_invalid")
    return ask


def _read_or_fail(gateway: Gateway, request: Request, permit: Permit | None) -> Ask | ApiError:
    return _or_fail(request, lambda: _read(gateway, request, permit))


def _or_fail(request: Request, call: Callable[[], T]) -> T | ApiError:
    """Never raises: nobody would answer the request."""
    try:
        return call()
    except Exception:
        log.exception("a body could not be read", extra={"f": {"path": request.path, "bytes": len(request.body)}})
        return ApiError(500, "The request body could not be read.", "server_error", "body_unread")


def _checked(gateway: Gateway, ask: Ask | ApiError, permit: Permit | None) -> Ask | ApiError:
    if isinstance(ask, ApiError):
        return ask
    if not ask.model:
        fleet = gateway.fleet
        if not fleet.only_model and fleet.view is not None:
            return errors.bad_request("You must provide a `model`: there are several.", param="model", code="model_missing")
        ask = msgspec.structs.replace(ask, model=fleet.only_model)
    if permit is not None and (denied := permit.model_refusal(ask.model)) is not None:
        gateway.metrics.denied.add(denied.code or "")
        return denied
    return ask


def prepare(gateway: Gateway, request: Request, ask: Ask, done: Callable[[Prompt], None], fields: Any = None) -> None:
    """Calls `done` with the prompt: at once, or from a thread's result later. fields: of the body, where it was read."""
    path, body, prompts = request.path, request.body, gateway.prompts
    model = gateway.fleet.models.get(ask.model) if path in PROMPT_PATHS and ask.readable else None
    if model is None:
        done(UNREAD)
        return
    if not prompts.wanted:
        done(skipped(len(body)))
        return
    began = gateway.clock.now()
    plan = prompts.plan(ask.model, model)
    if len(body) <= QUICK_BYTES_MAX or plan.is_quick(len(body)):
        prompt = prompts.prepare(path, ask, body, plan, fields)
        gateway.metrics.prompt.observe(gateway.clock.now() - began)
        done(prompt)
        return

    def finished(prompt: Prompt) -> None:
        _prepared_beside(gateway, "thread", began)
        done(prompt)

    _in_thread(gateway, lambda: prompts.prepare(path, ask, body, plan, fields), finished)


def reserve(gateway: Gateway, request: Request, ask: Ask, prompt: Prompt, permit: Permit) -> ApiError | None:
    """The tokens of a caller's limit."""
    tokens = prompt.input_tokens
    if not tokens and ask.readable:
        tokens = len(request.body) // BODY_BYTES_PER_TOKEN
    denied = permit.reserve(tokens, ask.max_tokens, gateway.clock.now())
    if denied is not None:
        gateway.metrics.denied.add(denied.code or "")
    return denied
