"""Settings of the data plane."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from runtime.log import FORMATS, LEVELS
from runtime.settings import check_port, check_positive, setting
from runtime.tls import check_pair


@dataclass(frozen=True)
class Settings:
    """The data plane: OpenAI HTTP in, the worker's bytes out."""

    host: str = setting("127.0.0.1", "address to listen on")
    port: int = setting(8000, "port of the OpenAI API")
    admin_port: int = setting(0, "port of /health, /ready and /metrics; 0: on the main port; process n of several adds n")
    admin_host: str = setting("", "address of the admin port; empty: the one of --host")
    control: tuple[str, ...] = setting(
        ("127.0.0.1:50051",),
        "gRPC target of the control plane, or unix:/path; several: the first that answers, the others stand by",
    )
    processes: int = setting(1, "processes that share the port")
    share_port: bool = setting(False, "start beside a data plane that has the port already, to take over from it")
    endpoint: tuple[str, ...] = setting((), "MODEL=URL of an engine: the fleet until a control plane sends one")
    tokenizer: tuple[str, ...] = setting((), "MODEL=PATH_OR_HUB_NAME in place of the tokenizer that the fleet names")

    keys_file: str = setting("", "callers' API keys (headway keys); empty: whoever reaches the port may call")
    tls_cert: str = setting("", "certificate chain of the HTTP port, PEM; a renewed one is found by itself")
    tls_key: str = setting("", "its private key")
    control_ca: str = setting("", "authority of the control plane's certificate: TLS to it, but for Unix sockets")
    control_cert: str = setting("", "certificate shown to the control plane")
    control_key: str = setting("", "its private key")
    upstream_keys_file: str = setting("", "JSON object of worker or URL, or *, to the key that this engine is shown")
    upstream_key: str = setting("", "key for engines that are not in that file", secret=True)
    upstream_ca: str = setting("", "authority of engines with https:// URLs; empty: the system's")

    compiled: bool = setting(True, "pass streams on by compiled code, where the installation found a C compiler")
    prompt_process: bool = setting(True, "prepare prompts of long bodies in a process of their own, beside each data plane")

    decision_timeout_ms: int = setting(250, "how long a question may wait for the control plane before the fallback decides")
    queue_timeout_ms: int = setting(10_000, "the same once the control plane has said that the question waits for room")
    outcomes_max: int = setting(10_000, "outcomes kept while the control plane is away")

    body_bytes_max: int = setting(32 * 1024 * 1024, "largest request body")
    head_bytes_max: int = setting(64 * 1024, "largest request head")
    requests_max: int = setting(10_000, "requests in flight in one process; more are refused with 503")
    hold_bytes_max: int = setting(256 * 1024, "how much of a response is held back while it could still be retried elsewhere")

    head_timeout_s: float = setting(10.0, "a request's head must arrive within this time")
    body_timeout_s: float = setting(120.0, "a request's body must arrive within this time")
    keep_alive_s: float = setting(75.0, "idle client connections are closed after this time")
    connect_timeout_s: float = setting(3.0, "connecting to an engine")
    first_byte_timeout_s: float = setting(600.0, "from sending a request to an engine to its first token")
    stuck_after_s: float = setting(10.0, "waiting for a first token where nothing moves, before the request goes elsewhere")
    idle_timeout_s: float = setting(60.0, "silence of an engine amid a response")
    total_timeout_s: float = setting(0.0, "a whole request; 0: no bound")
    client_stall_s: float = setting(300.0, "a client that does not read is cut off after this time")
    upstream_idle_s: float = setting(4.0, "idle engine connections are not used again after this time (vLLM closes at 5 s)")
    drain_timeout_s: float = setting(30.0, "at the end: how long requests in flight may take to finish")
    drain_idle_s: float = setting(2.0, "at the end: how long idle client connections stay open for a request on its way")

    attempts_max: int = setting(3, "tries of one request, each on another endpoint")
    retry_ratio: float = setting(0.2, "retry budget: retries earned by each request")
    retry_per_s: float = setting(1.0, "retry budget: retries earned by each second")

    hedge: bool = setting(False, "ask a second worker for a stream whose first one is silent for long")
    hedge_ratio: float = setting(0.05, "hedge budget: second attempts earned by each request")
    hedge_tokens_max: int = setting(8192, "prompts longer than this are not sent twice")
    hedge_after_ms: int = setting(0, "silence before a second attempt; 0: hedge_multiple times what the worker usually takes")
    hedge_multiple: float = setting(4.0, "silence before a second attempt, in first tokens of that worker")

    cors_origin: str = setting("", "value of Access-Control-Allow-Origin; empty: no CORS")
    access_log: str = setting("", "file for one JSON line a request, or - for stdout; empty: none")
    log_level: str = setting("info", "log level", choices=LEVELS)
    log_format: str = setting("text", "log format", choices=FORMATS)

    def check(self) -> None:
        if not self.control or not all(self.control) or len(set(self.control)) < len(self.control):
            raise ValueError(f"--control: {','.join(self.control)!r} is not a list of different addresses")
        check_port("port", self.port)
        check_port("admin_port", self.admin_port)
        check_positive(
            processes=self.processes,
            decision_timeout_ms=self.decision_timeout_ms,
            queue_timeout_ms=self.queue_timeout_ms,
            outcomes_max=self.outcomes_max,
            body_bytes_max=self.body_bytes_max,
            head_bytes_max=self.head_bytes_max,
            requests_max=self.requests_max,
            attempts_max=self.attempts_max,
            connect_timeout_s=self.connect_timeout_s,
            first_byte_timeout_s=self.first_byte_timeout_s,
            stuck_after_s=self.stuck_after_s,
            idle_timeout_s=self.idle_timeout_s,
            upstream_idle_s=self.upstream_idle_s,
        )
        check_pair(self.tls_cert, self.tls_key, "--tls-cert, --tls-key")
        check_pair(self.control_cert, self.control_key, "--control-cert, --control-key")
        if self.control_cert and not self.control_ca:
            raise ValueError("--control-cert: needs --control-ca too")
        for _, url in pairs(self.endpoint, "--endpoint"):
            _check_url(url, "--endpoint")
        pairs(self.tokenizer, "--tokenizer")


def _check_url(url: str, flag: str) -> None:
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        fits = False
    if not fits:
        raise ValueError(f"{flag}: {url!r} is no http:// or https:// URL")


def pairs(values: tuple[str, ...], flag: str) -> list[tuple[str, str]]:
    """`A=B` texts taken apart at the first sign. ValueError: one is not of that form."""
    found = []
    for value in values:
        left, sign, right = value.partition("=")
        if not sign or not left or not right:
            raise ValueError(f"{flag}: {value!r} is not of the form MODEL=VALUE")
        found.append((left, right))
    return found
