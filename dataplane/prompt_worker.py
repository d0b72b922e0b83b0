"""`python -m dataplane.prompt_worker`: prepares the long prompts of the data plane that started it, in its own interpreter.

Its standard input is a socket to the data plane (`prompt_messages`). It ends when that socket does, however the data plane
ended, and by no signal but SIGKILL: a data plane that is asked to end still serves what it has begun.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

from contract import tokens
from dataplane.openai import Ask, read_json, read_whole_json
from dataplane.prompt_messages import LENGTHS, Answer, Job, Loaded, Models, frame, read_order
from dataplane.prompts import ModelSeen, Prompt, Prompts, Tokenizer
from runtime import log as log_settings

log = logging.getLogger(__name__)

THREADS = 2
"""Prompts prepared at once: encoders let another thread run."""
GC_OBJECTS = 50_000
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(load: Callable[[str], Tokenizer] = tokens.load) -> None:
    level, form = sys.argv[1:] or ("info", "text")
    log_settings.configure("dataplane/prompts", level=level, format=form)
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    gc.set_threshold(GC_OBJECTS, 20, 100)
    try:
        Worker(socket.socket(fileno=0), load).run()
    except OSError as error:
        log.debug("the data plane is gone: %s", error)
    os._exit(0)  # nobody waits for what its threads still do


class Worker:
    """line: to the data plane, blocking; load: a tokenizer by its name."""

    def __init__(self, line: socket.socket, load: Callable[[str], Tokenizer]) -> None:
        self._line = line
        self._writing = Lock()
        self._prompts = Prompts(load, {}, self._loaded)
        self._models: dict[str, ModelSeen] = {}
        self._only = ""
        self._threads = ThreadPoolExecutor(THREADS, "prepare")

    def run(self) -> None:
        """Until the data plane is gone. OSError: the socket broke."""
        while lengths := self._take(LENGTHS.size):
            head_bytes, body_bytes = LENGTHS.unpack(lengths)
            head, body = self._take(head_bytes), self._take(body_bytes)
            if len(head) + len(body) != head_bytes + body_bytes:
                return
            order = read_order(head)
            if isinstance(order, Models):
                self._models = {model.name: model for model in order.models}
                self._only = order.only
                self._prompts.see(order.models, time.monotonic())
            else:
                self._threads.submit(self._work, order, body)

    def _take(self, count: int) -> bytes:
        """b"": the other side is gone."""
        data = self._line.recv(count, socket.MSG_WAITALL)
        return data if len(data) == count else b""

    def _say(self, message: Loaded | Answer) -> None:
        with self._writing:
            self._line.sendall(frame(message))

    def _loaded(self, spec: str) -> None:
        gc.collect()
        gc.freeze()
        self._say(Loaded(spec))

    def _work(self, job: Job, body: bytes) -> None:
        began = time.perf_counter()
        try:
            answer = self.prepare(job, body)
        except BaseException:  # a panic of an encoder is no Exception
            log.exception("a body could not be read", extra={"f": {"path": job.path, "bytes": len(body)}})
            answer = Answer(job.id)
        try:
            self._say(Answer(job.id, answer.ask, answer.refusal, answer.prompt, time.perf_counter() - began))
        except OSError:
            os._exit(0)

    def prepare(self, job: Job, body: bytes) -> Answer:
        """As the data plane reads and prepares it by itself, in one go. There is no event loop that waits: the body is decoded
        once, as it is."""
        found = read_whole_json(body, job.path)
        if found is not None:
            return Answer(job.id, found[0], None, self._prompt(job, found[0], body, found[1]))
        ask = read_json(body, job.path)  # says what is wrong with it
        if isinstance(ask, Ask):
            return Answer(job.id, ask, None, self._prompt(job, ask, body, None))
        return Answer(job.id, None, ask)

    def _prompt(self, job: Job, ask: Ask, body: bytes, fields: object) -> Prompt | None:
        name = ask.model or self._only
        model = self._models.get(name)
        if model is None:
            return None
        plan = self._prompts.plan(name, model)
        if plan.loaded is not None and plan.loaded.tokenizer is None:
            return None
        return self._prompts.prepare(job.path, ask, body, plan, fields)


if __name__ == "__main__":
    main()
