"""The routes that do not generate: health, models, load, metrics, tokens, cache control, adapters, faults."""

from __future__ import annotations

import asyncio
import os
import uuid
from array import array
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from emulator import calls, errors, faults, prompts
from emulator.app import App
from emulator.prometheus import CONTENT_TYPE
from emulator.wire import VERSION, dumps

EXIT_AFTER_S = 3.0
"""How long a server whose engine died goes on answering before its process ends."""


def json_answer(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=dumps(value), status=status, content_type="application/json")


class Routes:
    """Everything about the server itself."""

    def __init__(self, app: App) -> None:
        self._app = app

    def routes(self, *, with_faults: bool) -> list[web.RouteDef]:
        """The table. with_faults: let anyone who can reach the server break it."""
        get = [
            ("/health", self.health),
            ("/ping", self.health),
            ("/version", self.version),
            ("/v1/models", self.models),
            ("/load", self.load),
            ("/kv_event_sources", self.kv_event_sources),
            ("/metrics", self.metrics),
            ("/is_sleeping", self.is_sleeping),
            ("/is_paused", self.is_paused),
        ]
        post = [
            ("/ping", self.health),
            ("/tokenize", self.tokenize),
            ("/detokenize", self.detokenize),
            ("/v1/messages/count_tokens", self.count_tokens),
            ("/reset_prefix_cache", self.reset_prefix_cache),
            ("/sleep", self.sleep),
            ("/wake_up", self.wake_up),
            ("/pause", self.pause),
            ("/resume", self.resume),
            ("/v1/load_lora_adapter", self.load_lora),
            ("/v1/unload_lora_adapter", self.unload_lora),
        ]
        table = [web.get(path, handler, allow_head=False) for path, handler in get]
        table += [web.post(path, handler) for path, handler in post]
        if with_faults:
            table += [web.post("/emulator/faults", self.set_fault), web.get("/emulator/faults", self.get_faults)]
        return table

    async def health(self, http: web.Request) -> web.Response:
        """Empty 200; 503 once the engine is dead. A hung engine is healthy here, too."""
        return web.Response(status=200 if self._app.death is None else 503)

    async def version(self, http: web.Request) -> web.Response:
        return json_answer({"version": VERSION})

    async def models(self, http: web.Request) -> web.Response:
        app = self._app
        base = [self._model(app.model, app.model, None, app.max_model_len)]
        return json_answer(
            {"object": "list", "data": base + [self._model(name, path, app.model, None) for name, path in app.loras.items()]}
        )

    def _model(self, name: str, root: str, parent: str | None, length: int | None) -> dict[str, Any]:
        created = self._app.created
        permission = {
            "id": f"modelperm-{uuid.uuid4().hex[:16]}",
            "object": "model_permission",
            "created": created,
            "allow_create_engine": False,
            "allow_sampling": True,
            "allow_logprobs": True,
            "allow_search_indices": False,
            "allow_view": True,
            "allow_fine_tuning": False,
            "organization": "*",
            "group": None,
            "is_blocking": False,
        }
        return {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "vllm",
            "root": root,
            "parent": parent,
            "max_model_len": length,
            "permission": [permission],
        }

    async def load(self, http: web.Request) -> web.Response:
        return json_answer({"server_load": self._app.num_inside})

    async def kv_event_sources(self, http: web.Request) -> web.Response:
        return json_answer(self._app.kv_sources)

    async def metrics(self, http: web.Request) -> web.Response:
        first, *others = [driver.metrics for driver in self._app.ranks.drivers]
        return web.Response(body=first.render(*others).encode(), headers={"content-type": CONTENT_TYPE})

    async def tokenize(self, http: web.Request) -> web.Response:
        body = calls.decode_body(await http.read())
        self._app.lora_of(str(body.get("model") or self._app.model))
        if "messages" not in body and not isinstance(body.get("prompt"), str):
            raise errors.unprocessable("missing", "body.prompt", "Field required", body)
        ids = array("I", prompts.tokenize("/tokenize", body, self._app.texts)[0]).tolist()
        texts = [self._app.texts.text(token) for token in ids] if body.get("return_token_strs") else None
        return json_answer({"count": len(ids), "max_model_len": self._app.max_model_len, "tokens": ids, "token_strs": texts})

    async def detokenize(self, http: web.Request) -> web.Response:
        body = calls.decode_body(await http.read())
        ids = body.get("tokens")
        if not isinstance(ids, list) or not all(isinstance(token, int) for token in ids):
            raise errors.unprocessable("list_type", "body.tokens", "Input should be a valid list", ids)
        return json_answer({"prompt": self._app.texts.tokenizer.decode(ids)})

    async def count_tokens(self, http: web.Request) -> web.Response:
        body = calls.decode_body(await http.read())
        tokens = prompts.tokenize(calls.MESSAGES, body, self._app.texts)
        return json_answer({"input_tokens": len(tokens[0]) // 4})

    async def reset_prefix_cache(self, http: web.Request) -> web.Response:
        """The clear event leaves with the next step."""
        reset = [driver.engine.pool.reset() for driver in self._app.ranks.drivers]
        return json_answer({"success": all(reset)})

    async def sleep(self, http: web.Request) -> web.Response:
        """Level 1 (weights offloaded) or 2 (discarded). The KV cache is gone either way."""
        level = http.query.get("level", "1")
        if level not in ("1", "2"):
            raise errors.invalid(f"level must be 1 or 2, got {level}.", "level", level)
        self._pause(True)
        for driver in self._app.ranks.drivers:
            driver.engine.pool.reset()
        self._set_sleep(int(level))
        return web.Response()

    async def wake_up(self, http: web.Request) -> web.Response:
        self._set_sleep(0)
        self._pause(False)
        return web.Response()

    def _pause(self, paused: bool) -> None:
        for driver in self._app.ranks.drivers:
            driver.is_paused = paused
            driver.resume()

    def _set_sleep(self, level: int) -> None:
        self._app.sleep_level = level
        for driver in self._app.ranks.drivers:
            for state, at in (("awake", 0), ("weights_offloaded", 1), ("discard_all", 2)):
                driver.metrics.sleep_state[state].value = float(level == at)

    async def is_sleeping(self, http: web.Request) -> web.Response:
        return json_answer({"is_sleeping": self._app.sleep_level > 0})

    async def pause(self, http: web.Request) -> web.Response:
        self._pause(True)
        return json_answer({"status": "paused"})

    async def resume(self, http: web.Request) -> web.Response:
        self._pause(self._app.sleep_level > 0)
        return json_answer({"status": "resumed"})

    async def is_paused(self, http: web.Request) -> web.Response:
        return json_answer({"is_paused": self._app.driver.is_paused and self._app.sleep_level == 0})

    async def load_lora(self, http: web.Request) -> web.Response:
        body = calls.decode_body(await http.read())
        name, path = _required(body, "lora_name"), _required(body, "lora_path")
        if name in self._app.loras and not body.get("load_inplace"):
            message = (
                f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set "
                "'load_inplace' to True."
            )
            raise errors.ApiError(400, "InvalidUserInput", message)
        self._app.loras[name] = path
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    async def unload_lora(self, http: web.Request) -> web.Response:
        name = _required(calls.decode_body(await http.read()), "lora_name")
        if self._app.loras.pop(name, None) is None:
            raise errors.ApiError(404, "NotFoundError", f"The lora adapter '{name}' cannot be found.")
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")

    async def set_fault(self, http: web.Request) -> web.Response:
        try:
            fault = faults.parse(calls.decode_body(await http.read()))
        except ValueError as error:
            raise errors.invalid(str(error)) from None
        if fault.rank is not None and not 0 <= fault.rank < len(self._app.ranks.drivers):
            raise errors.invalid(f"rank {fault.rank} is out of range [0, {len(self._app.ranks.drivers)})")
        self._apply(fault)
        return json_answer(self._app.faults.active())

    async def get_faults(self, http: web.Request) -> web.Response:
        return json_answer(self._app.faults.active())

    def _apply(self, fault: faults.Fault) -> None:
        app, drivers = self._app, self._app.ranks.drivers
        app.faults.put(fault)
        if fault.kind == "clear":
            app.is_draining = False
            self._slow(1.0)
            self._unhang()
        elif fault.kind == "slow":
            self._slow(fault.factor)
        elif fault.kind == "hang":
            for driver in drivers if fault.rank is None else (drivers[fault.rank],):
                driver.is_hung = True
            if fault.seconds is not None:
                asyncio.get_running_loop().call_later(fault.seconds, self._unhang)
        elif fault.kind == "drain":
            app.is_draining = True
        elif fault.kind == "drop_kv_events":
            for driver in drivers:
                if driver.publisher is not None:
                    driver.publisher.drop_batches += fault.count
        elif fault.kind == "die":
            for driver in drivers:
                driver.die(errors.engine_dead())
            asyncio.get_running_loop().call_later(EXIT_AFTER_S if fault.seconds is None else fault.seconds, os._exit, 1)

    def _slow(self, factor: float) -> None:
        for driver in self._app.ranks.drivers:
            driver.engine.slowdown *= factor / self._app.slow_factor
        self._app.slow_factor = factor

    def _unhang(self) -> None:
        for driver in self._app.ranks.drivers:
            driver.is_hung = False
            driver.resume()


def _required(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise errors.unprocessable("missing", f"body.{name}", "Field required", body)
    return value
