"""The HTTP server: routes, error bodies, headers, keep-alive, as seen from outside a vLLM."""

from __future__ import annotations

import logging
import uuid

from aiohttp import web
from aiohttp.typedefs import Handler

from emulator import calls
from emulator.app import App
from emulator.errors import ApiError
from emulator.generate import Generate
from emulator.routes import Routes, json_answer

log = logging.getLogger(__name__)

KEEP_ALIVE_S = 5.0
"""An idle connection is closed after this long, as by uvicorn."""
BODY_BYTES_MAX = 256 << 20


def build(app: App, *, with_faults: bool) -> web.Application:
    """The aiohttp application."""
    generate = Generate(app)
    application = web.Application(middlewares=[_errors], client_max_size=BODY_BYTES_MAX)
    application.add_routes(Routes(app).routes(with_faults=with_faults))
    for path in (calls.COMPLETIONS, calls.CHAT, calls.RESPONSES, calls.MESSAGES, calls.EMBEDDINGS):
        application.router.add_post(path, generate.handle)
    application.on_response_prepare.append(_headers)
    return application


def runner(application: web.Application, *, keep_alive_s: float = KEEP_ALIVE_S) -> web.AppRunner:
    """Handlers are cancelled when their client leaves; signals are the caller's."""
    return web.AppRunner(
        application,
        access_log=None,
        keepalive_timeout=keep_alive_s,
        handler_cancellation=True,
        handle_signals=False,
        shutdown_timeout=1.0,
    )


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refusals to error objects; routing errors to vLLM's `detail`."""
    try:
        return await handler(request)
    except ApiError as error:
        return web.Response(body=error.body(), status=error.status, content_type="application/json")
    except web.HTTPMethodNotAllowed as error:
        answer = json_answer({"detail": "Method Not Allowed"}, status=405)
        answer.headers["allow"] = ", ".join(sorted(error.allowed_methods))
        return answer
    except web.HTTPNotFound:
        return json_answer({"detail": "Not Found"}, status=404)
    except web.HTTPException:
        raise
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return json_answer({"error": {"message": "", "type": "InternalServerError", "param": None, "code": 500}}, status=500)


async def _headers(http: web.Request, response: web.StreamResponse) -> None:
    response.headers["server"] = "uvicorn"
    response.headers["vary"] = "Origin"
    response.headers["x-request-id"] = http.headers.get("x-request-id") or uuid.uuid4().hex
