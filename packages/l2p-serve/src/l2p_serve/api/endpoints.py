"""OpenAI's image endpoints over a painter: /v1/images/generations, /v1/images/edits, /v1/models;
/health and /metrics beside them.

Beyond OpenAI's parameters: seed, steps, guidance_scale, negative_prompt and strength. Errors have OpenAI's
shape, so that its clients raise their own exceptions.
"""

import asyncio
import base64
import hmac
import secrets
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from l2p_arch.errors import ArchError
from l2p_arch.sampling.settings import Sampling
from l2p_run.errors import UserError
from starlette.exceptions import HTTPException

from l2p_serve.api.batching import BatchQueue, Job, QueueFull
from l2p_serve.api.requests import ApiError, Asked, read_edit, read_generation
from l2p_serve.door.guard import Attempts
from l2p_serve.limits import Limits
from l2p_serve.painter import Paints
from l2p_serve.recipe import Recipe

_LIFETIME = 3600  # s that a picture's address works, as OpenAI's
_HUNG_UP = 499
_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


@dataclass(kw_only=True)
class Api:
    """What the endpoints share."""

    painter: Paints
    queue: BatchQueue
    defaults: Sampling
    limits: Limits
    folder: Path
    keep: bool  # pictures stay in the folder
    tokens: Sequence[str] = ()  # empty: everybody who can connect
    started: float = field(default_factory=time.time)
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    attempts: Attempts = field(default_factory=lambda: Attempts(most=20))

    async def paint(self, request: Request, asked: Asked) -> dict[str, Any]:
        """Return the answer to a request, when its images are painted."""
        self.limits.check(asked.recipes[0], len(asked.recipes))
        self.painter.check(asked.recipes[0])
        job = self.queue.submit(asked.recipes)
        images = await _images(request, job)
        data = []
        for recipe, image in zip(asked.recipes, images, strict=True):
            made = self.painter.signed(recipe)
            content = await asyncio.to_thread(_encoded, image, made, asked.format)
            entry: dict[str, Any] = {"seed": recipe.seed, "revised_prompt": recipe.prompt}
            if asked.as_url:
                entry["url"] = f"{request.base_url}v1/images/files/{self._save(content, asked.format)}"
            else:
                entry["b64_json"] = base64.b64encode(content).decode()
            data.append(entry)
        width, height = images[0].size
        created = {"created": int(time.time()), "data": data}
        return created | {"size": f"{width}x{height}", "output_format": asked.format}

    def _save(self, content: bytes, form: str) -> str:
        """Keep a picture under a name that nobody guesses, for an hour."""
        now = time.time()
        if not self.keep:
            for path in self.folder.glob("[!.]*.*"):  # hidden ones are locks, and pictures that wait
                if now - path.stat().st_mtime > _LIFETIME:
                    path.unlink(missing_ok=True)
        name = f"{secrets.token_urlsafe(24)}.{form}"
        (self.folder / name).write_bytes(content)
        return name

    async def check_token(self, request: Request) -> None:
        """Refuse who does not know a token; wrong ones are answered late, and after some not at all."""
        if not self.tokens:
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ").strip().encode()
        if any(hmac.compare_digest(given, token.encode()) for token in self.tokens):
            return
        address = request.client.host if request.client else ""
        if wait := self.attempts.wait(address):
            raise ApiError(
                429, f"too many wrong tokens; try again in {wait:.0f} s", retry_after=int(wait) + 1
            )
        await self.attempts.punish(address)
        words = "the token is wrong" if given else "no token was given"
        raise ApiError(401, f"{words}; send Authorization: Bearer TOKEN", code="invalid_api_key")

    def metrics(self) -> str:
        """Return the metrics in Prometheus' text format."""
        counts = self.queue.counts
        rows = [
            ("images_total", "counter", "Images painted.", counts.images),
            ("batches_total", "counter", "Batches painted.", counts.batches),
            ("abandoned_images_total", "counter", "Images that nobody waited for.", counts.abandoned),
            ("painting_seconds_total", "counter", "Seconds spent painting.", counts.painting_seconds),
            ("queue_requests", "gauge", "Requests that wait.", self.queue.depth),
            ("uptime_seconds", "gauge", "Seconds since the start.", time.time() - self.started),
        ]
        lines = []
        for name, kind, words, value in rows:
            lines += [f"# HELP l2p_{name} {words}", f"# TYPE l2p_{name} {kind}", f"l2p_{name} {value:g}"]
        lines += ["# HELP l2p_requests_total Requests answered.", "# TYPE l2p_requests_total counter"]
        for (path, status), count in sorted(self.answers.items()):
            lines.append(f'l2p_requests_total{{path="{path}",status="{status}"}} {count}')
        return "\n".join(lines) + "\n"


async def _images(request: Request, job: Job) -> list[Any]:
    """Return the job's images; it is given up when the client hangs up."""
    waiting = asyncio.ensure_future(asyncio.wrap_future(job.done))
    try:
        while not waiting.done():
            await asyncio.wait({waiting}, timeout=0.25)
            if not waiting.done() and await request.is_disconnected():
                raise ApiError(_HUNG_UP, "the client hung up")
        return await waiting
    finally:
        if not waiting.done():
            waiting.cancel()
        job.cancel()


def _encoded(image: Any, recipe: Recipe, form: str) -> bytes:
    stream = BytesIO()
    options: dict[str, Any] = {"pnginfo": recipe.chunks()} if form == "png" else {"quality": 95}
    image.save(stream, format=form.upper(), **options)
    return stream.getvalue()


def make_api(api: Api) -> FastAPI:
    """Return the endpoints as a web application."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.post("/v1/images/generations")
    async def generations(request: Request) -> Any:
        await api.check_token(request)
        return await api.paint(request, await read_generation(request, api.defaults, api.painter.name))

    @app.post("/v1/images/edits")
    async def edits(request: Request) -> Any:
        await api.check_token(request)
        asked = await read_edit(request, api.defaults, api.painter.name, api.folder)
        try:
            return await api.paint(request, asked)
        finally:
            for path in asked.files:
                path.unlink(missing_ok=True)

    @app.get("/v1/models")
    async def models(request: Request) -> Any:
        await api.check_token(request)
        return {"object": "list", "data": [_card(api)]}

    @app.get("/v1/models/{name:path}")
    async def model(request: Request, name: str) -> Any:
        await api.check_token(request)
        if name != api.painter.name:
            raise ApiError(404, f"the model {name[:100]!r} does not exist", code="model_not_found")
        return _card(api)

    @app.get("/v1/images/files/{name}")
    async def file(name: str) -> Any:
        path = api.folder / Path(name).name
        try:
            found = Path(name).name == name and not name.startswith(".") and path.is_file()
        except (OSError, ValueError):  # no file can be called so
            found = False
        if not found:
            raise ApiError(404, "there is no such picture; its address works for an hour")
        return FileResponse(path)

    @app.get("/health")
    async def health() -> Any:
        alive = api.queue.is_alive
        body = {"status": "ok" if alive else "ended", "model": api.painter.name, "waiting": api.queue.depth}
        return JSONResponse(body, 200 if alive else 503)

    @app.get("/metrics")
    async def metrics(request: Request) -> Any:
        await api.check_token(request)
        return PlainTextResponse(api.metrics(), media_type="text/plain; version=0.0.4")

    _answer_errors(app)
    app.add_middleware(_Counted, answers=api.answers)
    return app


def _card(api: Api) -> dict[str, Any]:
    return {"id": api.painter.name, "object": "model", "created": int(api.started), "owned_by": "l2p"}


def _answer_errors(app: FastAPI) -> None:
    """Answer every failure in OpenAI's shape."""

    @app.exception_handler(UserError)
    @app.exception_handler(ArchError)
    @app.exception_handler(HTTPException)
    @app.exception_handler(Exception)
    async def answer(_: Request, error: Exception) -> Response:
        status, code, param, headers = 400, None, None, {}
        words = " ".join(str(error).split())
        if isinstance(error, ApiError):
            status, code, param = error.status, error.code, error.param
            headers = {"Retry-After": str(error.retry_after)} if error.retry_after else {}
        elif isinstance(error, QueueFull):
            status, code, headers = 429, "rate_limit_exceeded", {"Retry-After": "1"}
        elif isinstance(error, HTTPException):
            status, words = error.status_code, f"{error.detail}; see /v1/models and docs/generate.md"
        elif not isinstance(error, UserError | ArchError):
            status, words = 500, "the server failed; its log says more"
        return JSONResponse(error_body(status, words, code, param), status, headers)


class _Counted:
    """Counts answers by route and status."""

    def __init__(self, app: Any, answers: Counter[tuple[str, int]]) -> None:
        self.app, self.answers = app, answers

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def counting(message: Any) -> None:
            if message["type"] == "http.response.start":
                path = getattr(scope.get("route"), "path", "other")
                self.answers[path, message["status"]] += 1
            await send(message)

        await self.app(scope, receive, counting if scope["type"] == "http" else send)


def error_body(status: int, words: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """Return OpenAI's form of an error."""
    kind = _KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": words, "type": kind, "param": param, "code": code}}
