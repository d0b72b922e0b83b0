"""The HTTP shell: asks one engine over kept-alive connections, and says in three words what went wrong.

What is asked again and again, /metrics and /health, goes a short way; what is asked when an engine is found, and an answer that
sends elsewhere, aiohttp's.
"""

from __future__ import annotations

from types import TracebackType
from urllib.parse import urlsplit

import aiohttp

from runtime.tls import client_context
from worker_agent.kept_connection import KeptConnection, NoConnection

SCRAPE_TIMEOUT_S = 15.0
"""A saturated API server answers /metrics in seconds (4.3 s seen): only well beyond that is it silent."""
HEALTH_TIMEOUT_S = 5.0
DISCOVERY_TIMEOUT_S = 10.0
IDLE_CONNECTION_S_MAX = 4.0
"""vLLM closes idle connections after 5 s."""
CONNECT_TIMEOUT_S = 2.0
BODY_BYTES_MAX = 16 * 1024 * 1024


class EngineError(Exception):
    """No answer from the engine."""


class Refused(EngineError):
    """Nothing listens, no connection comes about, or it broke twice: the process is gone."""


class Silent(EngineError):
    """A connection, and no answer within the bound."""


class BadStatus(EngineError):
    """An answer that is not 200."""

    def __init__(self, path: str, status: int) -> None:
        super().__init__(f"{path} answered {status}")
        self.status = status


class EngineClient:
    """url: base URL of the engine; api_key: where its /v1 routes want one; ca: authority of an https URL. TlsError."""

    def __init__(self, url: str, *, api_key: str = "", ca: str = "") -> None:
        self.url = url
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        parts = urlsplit(url)
        context = client_context(ca) if parts.scheme == "https" else None
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=4, keepalive_timeout=IDLE_CONNECTION_S_MAX, ssl=context if context is not None and ca else True
            ),
            headers=headers,
        )
        self._kept: KeptConnection | None = None
        if parts.username is None:
            self._kept = KeptConnection(
                url,
                headers=headers,
                context=context,
                connect_s=CONNECT_TIMEOUT_S,
                idle_s_max=IDLE_CONNECTION_S_MAX,
                body_max=BODY_BYTES_MAX,
            )

    async def __aenter__(self) -> EngineClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._kept is not None:
            self._kept.close()
        await self._session.close()

    async def metrics(self) -> bytes:
        """The Prometheus page. EngineError."""
        return await self._get_quickly("/metrics", SCRAPE_TIMEOUT_S)

    async def models(self) -> bytes:
        """`/v1/models`. EngineError."""
        return await self._get("/v1/models", DISCOVERY_TIMEOUT_S)

    async def version(self) -> bytes:
        """`/version`; b"" where the engine has no such route. Refused, Silent."""
        return await self._optional("/version")

    async def event_sources(self) -> bytes:
        """`/kv_event_sources`; b"" where the engine has no such route (before 0.31). Refused, Silent."""
        return await self._optional("/kv_event_sources")

    async def healthy(self) -> bool:
        """Whether /health says 200. Refused, Silent."""
        try:
            await self._get_quickly("/health", HEALTH_TIMEOUT_S)
        except BadStatus as answer:
            return answer.status < 500
        return True

    async def _optional(self, path: str) -> bytes:
        try:
            return await self._get(path, DISCOVERY_TIMEOUT_S)
        except BadStatus:
            return b""

    async def _get_quickly(self, path: str, timeout_s: float) -> bytes:
        if self._kept is None:
            return await self._get(path, timeout_s)
        try:
            status, body = await self._kept.get(path, timeout_s)
        except TimeoutError as error:
            raise Silent(f"{path}: no answer in {timeout_s:g} s") from error
        except NoConnection as error:  # even a saturated server's kernel accepts connections
            raise Refused(f"{path}: {error}") from error
        except OSError as error:
            raise Refused(f"{path}: {error or type(error).__name__}") from error
        if status == 200:
            return body
        if 300 <= status < 400:
            return await self._get(path, timeout_s)
        raise BadStatus(path, status)

    async def _get(self, path: str, timeout_s: float) -> bytes:
        try:
            return await self._get_once(path, timeout_s)
        except Refused as error:
            if isinstance(error.__cause__, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
                raise
        # A kept connection that the engine closed in this moment: once more, on a new one.
        return await self._get_once(path, timeout_s)

    async def _get_once(self, path: str, timeout_s: float) -> bytes:
        # `connect` bounds the name's resolution, too: a stopped container's name may take a resolver half a minute.
        timeout = aiohttp.ClientTimeout(total=timeout_s, connect=CONNECT_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S)
        try:
            async with self._session.get(self.url + path, timeout=timeout) as answer:
                body = await answer.content.read(BODY_BYTES_MAX) if answer.status != 200 else await answer.read()
                if answer.status != 200:
                    raise BadStatus(path, answer.status)
                return body
        except aiohttp.ConnectionTimeoutError as error:  # even a saturated server's kernel accepts connections
            raise Refused(f"{path}: no connection in {CONNECT_TIMEOUT_S:g} s") from error
        except (TimeoutError, aiohttp.ServerTimeoutError) as error:
            raise Silent(f"{path}: no answer in {timeout_s:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Refused(f"{path}: {error or type(error).__name__}") from error
