"""From a request's body to what is asked about it: the model and a few fields, token ids, block hashes. Large prompts are
tokenised in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from dataplane import errors
from dataplane.errors import ApiError
from dataplane.gateway import Gateway
from dataplane.http1 import Request
from dataplane.limits import BODY_BYTES_PER_TOKEN, Permit
from dataplane.openai import PROMPT_PATHS, Ask, read_ask, read_json
from dataplane.prompts import UNREAD, Prompt, skipped


def read(gateway: Gateway, request: Request, permit: Permit | None) -> Ask | ApiError:
    """The fields that routing needs, or why the request is refused."""
    ask = (
        read_json(request.body, request.path)
        if request.forwarded is not None
        else read_ask(request, gateway.settings.body_bytes_max)
    )
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


def prepare(gateway: Gateway, request: Request, ask: Ask, done: Callable[[Prompt], None]) -> None:
    """Calls `done` with the prompt: at once, or from a thread's result later."""
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
    if plan.is_quick(len(body)):
        prompt = prompts.prepare(path, ask, body, plan)
        gateway.metrics.prompt.observe(gateway.clock.now() - began)
        done(prompt)
    else:

        def finished(prompt: Prompt) -> None:
            gateway.metrics.prompt.observe(gateway.clock.now() - began)
            done(prompt)

        loop = asyncio.get_running_loop()
        future = gateway.executor.submit(prompts.prepare, path, ask, body, plan)
        future.add_done_callback(lambda found: found.cancelled() or loop.call_soon_threadsafe(finished, found.result()))


def reserve(gateway: Gateway, request: Request, ask: Ask, prompt: Prompt, permit: Permit) -> ApiError | None:
    """The tokens of a caller's limit."""
    tokens = prompt.input_tokens
    if not tokens and ask.readable:
        tokens = len(request.body) // BODY_BYTES_PER_TOKEN
    denied = permit.reserve(tokens, ask.max_tokens, gateway.clock.now())
    if denied is not None:
        gateway.metrics.denied.add(denied.code or "")
    return denied
