"""The control API's server: HTTP on the control socket, on a thread of its own.

How it works      One thread runs an asyncio loop that reads requests and writes responses; each call of the
                  service runs on a thread of a small pool, so that one that waits for disks holds up nobody
                  else. Bodies are read strictly as the route's type. Errors are {"error": {"code", "message",
                  "hint"}}.
Owner and locks   Nothing is shared but the service, whose verbs lock for themselves.
Errors            What is no PolyvolError is a defect: it is logged, and the client gets 'internal-error'.
"""

import asyncio
import json
import logging
import socket
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from aiohttp import web
from pydantic import TypeAdapter, ValidationError

from polyvol.daemon.api import changes, deletions, device, group, schedule, scrub, snapshot, volume
from polyvol.daemon.api.openapi import openapi_document
from polyvol.daemon.api.route import Call, Route
from polyvol.daemon.errors import BadRequest, InternalError, NoSuchPage, http_status
from polyvol.daemon.views import StatusView
from polyvol.mapping.errors import PolyvolError

if TYPE_CHECKING:
    from polyvol.daemon.service import Service

ROUTES: list[Route] = [
    Route("GET", "/v1/status", "Everything at a glance", lambda service, _: service.status(), StatusView),
    *device.ROUTES,
    *volume.ROUTES,
    *snapshot.ROUTES,
    *changes.ROUTES,
    *deletions.ROUTES,
    *scrub.ROUTES,
    *group.ROUTES,
    *schedule.ROUTES,
]
_BODY_BYTES_MAX = 1 << 20
_THREADS = 8
_STOP_TIMEOUT_S = 10.0
"""How long a stop waits for answers to be read; calls that have begun are waited for in any case."""
_log = logging.getLogger("polyvol.api")


class ControlServer:
    """Serves one service on one listening socket."""

    def __init__(self, service: "Service", listener: socket.socket) -> None:
        self._service = service
        self._listener = listener
        self._loop = asyncio.new_event_loop()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="polyvol-api-call")
        self._thread = threading.Thread(target=self._run, name="polyvol-api", daemon=True)
        self._serving = threading.Event()
        self._failure: BaseException | None = None
        self._told: asyncio.Event | None = None

    def start(self) -> None:
        """Start the thread; returns when requests are answered."""
        self._thread.start()
        self._serving.wait()
        if self._failure is not None:
            raise self._failure

    def answers(self, timeout_s: float) -> bool:
        """Whether the loop comes round within this time."""
        came_round = threading.Event()
        try:
            self._loop.call_soon_threadsafe(came_round.set)
        except RuntimeError:  # the loop is closed
            return False
        return came_round.wait(timeout_s)

    def stop(self) -> None:
        """Stop answering, after the calls that have begun; idempotent."""
        told = self._told
        if told is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(told.set)
            self._thread.join()
        self._pool.shutdown(wait=True, cancel_futures=True)
        if not self._thread.is_alive() and not self._loop.is_closed():
            self._loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as failure:
            self._failure = failure
            self._serving.set()

    async def _serve(self) -> None:
        self._told = asyncio.Event()
        runner = web.AppRunner(self._application(), access_log=None, shutdown_timeout=_STOP_TIMEOUT_S)
        await runner.setup()
        try:
            await web.SockSite(runner, self._listener).start()
            self._serving.set()
            await self._told.wait()
        finally:
            await runner.cleanup()

    def _application(self) -> web.Application:
        application = web.Application(client_max_size=_BODY_BYTES_MAX, middlewares=[_errors_as_json])
        for route in ROUTES:
            application.router.add_route(route.method, route.path, self._handler(route))
        application.router.add_get("/openapi.json", self._openapi)
        return application

    def _handler(self, route: Route) -> Callable[[web.Request], Awaitable[web.Response]]:
        body_type: TypeAdapter[Any] | None = None if route.body is None else TypeAdapter(route.body)
        result_type: TypeAdapter[Any] = TypeAdapter(route.result)

        def call(request: web.Request, body: object) -> bytes:
            result = route.call(self._service, Call(request.match_info, request.query, body))
            return result_type.dump_json(result)

        async def handle(request: web.Request) -> web.Response:
            unknown = set(request.query) - {name for name, _, _ in route.query}
            if unknown:
                raise BadRequest(why=f"there is no query parameter {min(unknown)!r} here")
            body = None if body_type is None else _read_body(body_type, await request.read())
            text = await asyncio.get_running_loop().run_in_executor(self._pool, call, request, body)
            return web.Response(body=text, status=route.status, content_type="application/json")

        return handle

    async def _openapi(self, _: web.Request) -> web.Response:
        return web.json_response(openapi_document(ROUTES, "1"))


def _read_body(body_type: TypeAdapter[Any], text: bytes) -> object:
    try:
        return body_type.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        message = f"{where}: {first['msg']}" if where else first["msg"]
        raise BadRequest(why=message) from error


@web.middleware
async def _errors_as_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except PolyvolError as error:
        return _error_response(error, http_status(error))
    except (web.HTTPNotFound, web.HTTPMethodNotAllowed) as error:
        return _error_response(NoSuchPage(method=request.method, path=request.path), error.status)
    except web.HTTPException as error:
        return _error_response(BadRequest(why=error.reason), error.status)
    except Exception as error:
        _log.exception("%s %s", request.method, request.path)
        return _error_response(InternalError(what=type(error).__name__), 500)


def _error_response(error: PolyvolError, status: int) -> web.Response:
    body = {"error": {"code": error.code, "message": error.message, "hint": error.advice}}
    return web.Response(text=json.dumps(body), status=status, content_type="application/json")
