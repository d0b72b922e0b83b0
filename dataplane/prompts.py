"""Prompt to block hashes: tokenizers loaded in the background, and what a prompt becomes while there is none.

TOKENS  the model's tokenizer is loaded: hashes equal those that the workers' agents publish
TEXT    it cannot be had, or this request cannot be tokenised as the engine does it: chunks of text, said in /ready and metrics
none    it is still loading, or the body cannot be read: the request is routed without a chain, and does not wait; so it is
        where the policy looks at no prompt (`FleetView.without_chains`): tokenising would be the dearest step of all
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from threading import Thread
from typing import Any, Protocol

import msgspec

from contract import blocks
from contract.blocks import short_chain
from contract.tokens import NotTokenizable, PromptError, TokenizerUnavailable, text_of
from contract.tokens.chains import SHORT_BLOCKS_MAX, ChainCache
from dataplane.chat import Chat
from dataplane.openai import SLICED_BYTES_MIN, Ask
from dataplane.unescape import unescaped

log = logging.getLogger(__name__)
_decode = msgspec.json.Decoder().decode

RELOAD_AFTER_S = 60.0
ROOTS_MAX = 4096
SALT_KEPT_MAX = 256
"""Longer salts are hashed each time: what is remembered is the callers' to choose."""
SAID_MAX = 256
"""Reasons why prompts are hashed as text that are logged, once each: some come of what callers send."""
TEXT_INLINE_BYTES_MAX = 32 * 1024
"""Bodies up to this size are cut and hashed as text on the event loop."""
FALLBACK_BLOCK_TOKENS = 16
"""Block size of text chains where the fleet has not said one."""


class Tokenizer(Protocol):
    """What is used of contract.tokens.PromptTokenizer."""

    def is_cheap(self, body_bytes: int) -> bool:
        """A body of this size may be tokenised on the event loop."""

    def usual(self, path: str, body: object) -> bytes | None:
        """`prompts` of what most requests are, in fewer steps; None: it is another."""

    def of_texts(self, messages: list[Any]) -> bytes | None:
        """The same of a chat's messages that have no more than a role and a content each, both strings."""

    def prompts(self, path: str, body: Mapping[str, Any]) -> list[bytes]:
        """Flat little-endian uint32 token ids of every prompt in a body."""


class Model(Protocol):
    """What is read of a model of the fleet: `pb.ModelView`, or what another process was told of it."""

    @property
    def name(self) -> str: ...
    @property
    def base(self) -> str: ...
    @property
    def alias(self) -> bool: ...
    @property
    def tokenizer(self) -> str: ...
    @property
    def block_sizes(self) -> Iterable[int]: ...


class ModelSeen(msgspec.Struct, array_like=True, frozen=True):
    """A `Model` that can be sent. tokenizer: "", or what to load."""

    name: str
    base: str
    alias: bool
    tokenizer: str
    block_sizes: tuple[int, ...]


class Prompt(msgspec.Struct, frozen=True, gc=False):
    """A prompt as the control plane wants it. kind: tokens, text, loading, skipped or unread, for the metrics."""

    kind: str
    input_tokens: int = 0
    chains: tuple[tuple[int, bytes], ...] = ()  # (block size, packed hashes)


PREDICTING = frozenset(("tokens", "text"))
"""Kinds of prompts that were read, so that matched tokens are a prediction."""
UNREAD = Prompt("unread")
LOADING = Prompt("loading")


def skipped(body_bytes: int) -> Prompt:
    """Of a policy that looks at no prompt: an estimate of its tokens."""
    return SKIPPED.get(body_bytes) or Prompt("skipped", body_bytes // blocks.TEXT_CHARS_PER_TOKEN)


SKIPPED = {size: Prompt("skipped", size // blocks.TEXT_CHARS_PER_TOKEN) for size in range(4096)}
"""Of small bodies, made once."""


@dataclass(slots=True)
class _Loaded:
    tokenizer: Tokenizer | None = None
    error: str = ""
    loading: bool = False
    tried_at: float = -1e9


class Plan:
    """What is read of a model for each of its prompts: messages of the fleet view are slow to read. model: it was read from."""

    __slots__ = ("base", "block_sizes", "loaded", "lora", "model", "only_size", "root", "short")

    def __init__(self, model: Model, loaded: _Loaded | None, base: str, lora: str, block_sizes: tuple[int, ...]) -> None:
        self.model = model
        self.loaded = loaded  # None: it names no tokenizer
        self.base = base
        self.lora = lora
        self.block_sizes = block_sizes
        self.only_size = block_sizes[0] if len(block_sizes) == 1 else 0
        self.short: dict[int, Callable[[bytes, int], bytes]] = {}
        """By number of blocks of `only_size`, up to SHORT_BLOCKS_MAX: their chain in its wire form."""
        self.root = blocks.root_hash(base, lora=lora)
        """Of prompts without a `cache_salt`."""

    def is_quick(self, body_bytes: int) -> bool:
        """`Prompts.prepare` is short enough for the event loop."""
        loaded = self.loaded
        if loaded is None or loaded.tokenizer is None:
            return body_bytes <= TEXT_INLINE_BYTES_MAX
        return loaded.tokenizer.is_cheap(body_bytes)


class Prompts:
    """Tokenizers by model. load: spec -> Tokenizer, slow, run in a thread of its own; overrides: model -> spec;
    loaded: called in that thread with each spec whose tokenizer is in use from then on."""

    def __init__(
        self, load: Callable[[str], Tokenizer], overrides: Mapping[str, str], loaded: Callable[[str], None] = lambda spec: None
    ) -> None:
        self._load = load
        self._loaded = loaded
        self._overrides = dict(overrides)
        self._by_spec: dict[str, _Loaded] = {}
        self._plans: dict[str, Plan] = {}
        self._chains = ChainCache()
        self.wanted = True
        """Whether the policy looks at prompts."""
        self._said: set[str] = set()

    def see(self, models: Iterable[Model], now: float, *, wanted: bool = True) -> None:
        """The fleet's models: begins to load what is not loaded yet, and again what failed a while ago.

        wanted: whether the policy looks at prompts. Tokenizers are loaded all the same: a policy is switched at once.
        """
        self.wanted = wanted
        self._plans.clear()
        for model in models:
            spec = self._spec(model)
            if not spec:
                self._say(model.name, "the fleet names no tokenizer")
                continue
            entry = self._by_spec.setdefault(spec, _Loaded())
            if entry.tokenizer is None and not entry.loading and now - entry.tried_at > RELOAD_AFTER_S:
                entry.loading, entry.tried_at = True, now
                # A daemon: the end of the process does not wait for a hub that does not answer.
                Thread(target=self._load_one, args=(spec, model.name, entry), name="load-tokenizer", daemon=True).start()

    @property
    def loading(self) -> bool:
        """A thread is loading a tokenizer."""
        return any(entry.loading for entry in self._by_spec.values())

    def seen(self, models: Iterable[Model]) -> Iterable[ModelSeen]:
        """The same models, each with the tokenizer that it gets here: for another process."""
        for model in models:
            yield ModelSeen(model.name, model.base, model.alias, self._spec(model), tuple(model.block_sizes))

    def status(self, models: Iterable[Model]) -> dict[str, str]:
        """Per model: ready, loading, or why its prompts are hashed as text."""
        return {model.name: self._status(model) for model in models}

    def plan(self, asked: str, model: Model) -> Plan:
        """How prompts for `model` are read, which the fleet knows by the name `asked`."""
        plan = self._plans.get(asked)
        if plan is None or plan.model is not model:
            sizes = tuple(size for size in model.block_sizes if size > 0)
            loaded = self._by_spec.get(self._spec(model))
            plan = self._plans[asked] = Plan(model, loaded, model.base or model.name, _lora(model), sizes)
        return plan

    def prepare(self, path: str, ask: Ask, body: bytes, plan: Plan, fields: Any = None) -> Prompt:
        """Tokenise and hash; may run in a thread. Never raises: a prompt that cannot be read is routed without a chain.

        fields: what the body says, a `Chat` or JSON as it is, where it was read already.
        """
        try:
            loaded = plan.loaded
            tokenizer = loaded.tokenizer if loaded is not None else None
            if type(fields) is Chat:
                flat = tokenizer.of_texts(fields.messages) if tokenizer is not None else None
                if flat is not None:
                    return self._token_prompt(flat, len(flat) // 4, ask, plan)
                fields = None
            if tokenizer is None:
                if loaded is not None and loaded.loading:
                    return LOADING
                fields = _fields(body) if fields is None else fields
            else:
                if fields is None:
                    fields = _fields(body)
                flat = tokenizer.usual(path, fields)
                if flat is not None:
                    return self._token_prompt(flat, len(flat) // 4, ask, plan)
                try:
                    prompts = tokenizer.prompts(path, fields)
                    # Of a batch: the longest prompt's chain, and the tokens of all.
                    return self._token_prompt(max(prompts, key=len, default=b""), sum(map(len, prompts)) // 4, ask, plan)
                except PromptError:
                    return UNREAD  # the caller's mistake: the engine answers it in its own words
                except NotTokenizable as error:
                    self._say(f"{plan.model.name} {path} {error.reason}", str(error))
            return _text_prompt(text_of(path, fields), ask, plan)
        except BaseException:  # foreign code, fed by strangers; what panics in Rust is no Exception
            log.exception("a prompt could not be read", extra={"f": {"model": ask.model, "path": path}})
            return UNREAD

    def _token_prompt(self, flat: bytes, tokens: int, ask: Ask, plan: Plan) -> Prompt:
        """flat: the prompt whose blocks are hashed; tokens: of all prompts of the request."""
        size = plan.only_size
        if size and not ask.cache_salt:
            full = len(flat) // (4 * size)
            if not full:  # shorter than a block: there is no full one
                return Prompt("tokens", tokens)
            chain = plan.short.get(full)
            if chain is None:
                if full > SHORT_BLOCKS_MAX:
                    return Prompt("tokens", tokens, ((size, self._chains.packed(flat, size, plan.root)),))
                chain = plan.short[full] = short_chain(size, full)
            return Prompt("tokens", tokens, ((size, chain(flat, plan.root)),))
        root = _root(plan.base, plan.lora, ask.cache_salt) if ask.cache_salt else plan.root
        sizes = [size for size in plan.block_sizes if len(flat) >= 4 * size]
        return Prompt("tokens", tokens, tuple((size, self._chains.packed(flat, size, root)) for size in sizes))

    def _spec(self, model: Model) -> str:
        return self._overrides.get(model.name) or self._overrides.get(model.base) or model.tokenizer

    def _status(self, model: Model) -> str:
        entry = self._by_spec.get(self._spec(model))
        if entry is None:
            return "text: the fleet names no tokenizer"
        if entry.tokenizer is not None:
            return "ready"
        return "loading" if entry.loading else f"text: {entry.error}"

    def _load_one(self, spec: str, name: str, entry: _Loaded) -> None:
        began = time.monotonic()
        try:
            entry.tokenizer = self._load(spec)
            log.info("tokenizer ready", extra={"f": {"model": name, "spec": spec, "s": round(time.monotonic() - began, 2)}})
            self._loaded(spec)
        except TokenizerUnavailable as error:
            entry.error = str(error)
            self._say(name, entry.error)
        except Exception as error:
            entry.error = f"{type(error).__name__}: {error}"
            log.exception("loading a tokenizer failed", extra={"f": {"model": name, "spec": spec}})
        finally:
            entry.loading = False

    def _say(self, name: str, why: str) -> None:
        if name not in self._said and len(self._said) < SAID_MAX:
            self._said.add(name)
            log.warning("prompts are hashed as text, not tokens", extra={"f": {"model": name, "why": why}})


def _fields(body: bytes) -> Any:
    return _decode(body if len(body) <= SLICED_BYTES_MIN else unescaped(body))


def _text_prompt(text: bytes, ask: Ask, plan: Plan) -> Prompt:
    root = _text_root(plan.base, plan.lora, ask.cache_salt)
    sizes = plan.block_sizes or (FALLBACK_BLOCK_TOKENS,)
    chains = tuple((size, blocks.text_chain(text, size, root).tobytes()) for size in sizes)
    return Prompt("text", len(text) // blocks.TEXT_CHARS_PER_TOKEN, chains)


def _root(base: str, lora: str, cache_salt: str) -> int:
    if len(cache_salt) > SALT_KEPT_MAX:
        return blocks.root_hash(base, lora=lora, cache_salt=cache_salt)
    return _known_root(base, lora, cache_salt)


@lru_cache(maxsize=ROOTS_MAX)
def _known_root(base: str, lora: str, cache_salt: str) -> int:
    return blocks.root_hash(base, lora=lora, cache_salt=cache_salt)


def _text_root(base: str, lora: str, cache_salt: str) -> int:
    if len(cache_salt) > SALT_KEPT_MAX:
        return blocks.text_root_hash(base, lora=lora, cache_salt=cache_salt)
    return _known_text_root(base, lora, cache_salt)


@lru_cache(maxsize=ROOTS_MAX)
def _known_text_root(base: str, lora: str, cache_salt: str) -> int:
    return blocks.text_root_hash(base, lora=lora, cache_salt=cache_salt)


def _lora(model: Model) -> str:
    return model.name if model.base and model.base != model.name and not model.alias else ""
