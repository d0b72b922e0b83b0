"""What a key may use: requests and tokens a minute, requests at once. Pure.

Token buckets that hold one minute's worth. The processes of one data plane share their state (`shared_limits`); where a system
has no memory to share, each of N processes grants an Nth.

A request takes its prompt and its output limit from the token bucket before it is sent, and gives back what it did not use
once the engine has said how much that was. A bucket may go below zero then: what was used is paid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dataplane.errors import ApiError
from dataplane.keys import Key

MINUTE_S = 60.0
OUTPUT_TOKENS_ASSUMED = 256
"""Reserved for a request that names no limit of its own."""
BODY_BYTES_PER_TOKEN = 4


class Bucket:
    """per_minute: what flows in, and the most it holds."""

    __slots__ = ("at", "level", "per_minute")

    def __init__(self, per_minute: float, now: float) -> None:
        self.per_minute = per_minute
        self.level = per_minute
        self.at = now

    def refill(self, now: float) -> None:
        self.level = min(self.per_minute, self.level + (now - self.at) * self.per_minute / MINUTE_S)
        self.at = now

    def wait_s(self, amount: float) -> float:
        """Until that much is there; 0: now. Of a bucket refilled at this moment."""
        return max(0.0, (amount - self.level) * MINUTE_S / self.per_minute)

    def headers(self, what: bytes) -> list[bytes]:
        """As OpenAI names them."""
        return [
            b"x-ratelimit-limit-%b: %d" % (what, self.per_minute),
            b"x-ratelimit-remaining-%b: %d" % (what, max(0.0, self.level)),
            b"x-ratelimit-reset-%b: %b" % (what, duration(self.wait_s(self.per_minute))),
        ]


def duration(seconds: float) -> bytes:
    """As OpenAI writes one: 120ms, 3.5s, 1m12s."""
    if seconds < 1:
        return b"%dms" % math.ceil(seconds * 1000)
    if seconds < MINUTE_S:
        return f"{seconds:.3g}s".encode()
    return b"%dm%ds" % divmod(math.ceil(seconds), 60)


class Account:
    """What one key has used. share: how many processes divide its limits."""

    __slots__ = ("concurrent_max", "in_flight", "requests", "tokens")

    def __init__(self, key: Key, *, share: int, now: float) -> None:
        self.in_flight = 0
        self.requests: Bucket | None = None
        self.tokens: Bucket | None = None
        self.concurrent_max = 0
        self.adapt(key, share=share, now=now)

    def adapt(self, key: Key, *, share: int, now: float) -> None:
        """To limits that may have changed; what was used stays used."""
        self.concurrent_max = math.ceil(key.concurrent_max / share)
        self.requests = _adapted(self.requests, key.requests_per_minute, share, now)
        self.tokens = _adapted(self.tokens, key.tokens_per_minute, share, now)

    def enter(self, now: float) -> ApiError | None:
        """One request begins, or why it may not. Each None needs one `leave`."""
        if self.concurrent_max and self.in_flight >= self.concurrent_max:
            return limited(f"This key has {self.in_flight} requests in flight, its limit.", "concurrent_requests", 1.0)
        if self.requests is not None:
            self.requests.refill(now)
            wait_s = self.requests.wait_s(1)
            if wait_s:
                limit = self.requests.per_minute
                return limited(f"Rate limit reached: {limit:g} requests per minute.", "rate_limit_exceeded", wait_s, "requests")
            self.requests.level -= 1
        self.in_flight += 1
        return None

    def leave(self) -> None:
        assert self.in_flight > 0, f"{self.in_flight} requests in flight, and one more left"
        self.in_flight -= 1

    def reserve(self, tokens: int, now: float) -> ApiError | None:
        """Takes tokens, or why they may not be taken."""
        bucket = self.tokens
        if bucket is None:
            return None
        bucket.refill(now)
        limit = bucket.per_minute
        if tokens > limit:
            message = f"Request too large: {limit:g} tokens per minute, requested {tokens}. Lower the prompt or `max_tokens`."
            return limited(message, "rate_limit_exceeded", 0.0, "tokens")
        wait_s = bucket.wait_s(tokens)
        if wait_s:
            message = f"Rate limit reached: {limit:g} tokens per minute, requested {tokens}."
            return limited(message, "rate_limit_exceeded", wait_s, "tokens")
        bucket.level -= tokens
        return None

    def settle(self, reserved: int, used: int, now: float) -> None:
        """What was reserved in place of what was used."""
        if self.tokens is not None:
            self.tokens.refill(now)
            self.tokens.level = min(self.tokens.per_minute, self.tokens.level + reserved - used)

    def headers(self, now: float) -> list[bytes]:
        """x-ratelimit lines of the limits there are."""
        lines: list[bytes] = []
        for what, bucket in ((b"requests", self.requests), (b"tokens", self.tokens)):
            if bucket is not None:
                bucket.refill(now)
                lines += bucket.headers(what)
        return lines


def limited(message: str, code: str, retry_after_s: float, kind: str = "requests") -> ApiError:
    """429 in OpenAI's words. retry_after_s: 0 where waiting does not help."""
    return ApiError(429, message, kind, code, retry_after_s=retry_after_s)


@dataclass(slots=True)
class Permit:
    """One request of one key: what it may ask, and what it holds until `close`."""

    key: Key
    account: Account
    reserved: int = 0
    prompt_tokens: int = 0  # as reserved

    def model_refusal(self, model: str) -> ApiError | None:
        """None: allowed."""
        if not self.key.models or model in self.key.models:
            return None
        return ApiError(403, f"This key may not use the model `{model}`.", "permission_error", "model_not_allowed", "model")

    def reserve(self, prompt_tokens: int, max_tokens: int, now: float) -> ApiError | None:
        """Before the first attempt. max_tokens: 0 where the request names none."""
        tokens = prompt_tokens + (max_tokens or OUTPUT_TOKENS_ASSUMED)
        refusal = self.account.reserve(tokens, now)
        if refusal is None:
            self.reserved, self.prompt_tokens = tokens, prompt_tokens
        return refusal

    def close(self, used: int, now: float) -> None:
        """The request is over. used: prompt and output tokens, 0 where no engine worked for it."""
        if self.reserved:
            self.account.settle(self.reserved, used, now)
            self.reserved = 0
        self.account.leave()


def _adapted(bucket: Bucket | None, per_minute: int, share: int, now: float) -> Bucket | None:
    if not per_minute:
        return None
    amount = max(1.0, per_minute / share)
    if bucket is None:
        return Bucket(amount, now)
    bucket.refill(now)
    if bucket.per_minute != amount:
        bucket.level += amount - bucket.per_minute
        bucket.per_minute = amount
    return bucket
