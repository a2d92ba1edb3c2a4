"""The HTTP worker (DESIGN §5): score, rank, health, metrics, documentation."""

import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.requests import ClientDisconnect

from contracts.manifest import Manifest
from contracts.scoring import ErrorReply, ModelReply, RankReply, RankRequest, Reply, ScoreReply, ScoreRequest
from contracts.settings import Settings
from serving.metrics import ServingMetrics
from serving.reload import Reloader
from serving.scorer import Scorer, ScoringError

log = logging.getLogger("anabranch.serving")

_JSON = "application/json"
_CLIENT_CLOSED = 499  # nginx's code, for the metric
_SCORE, _RANK = "/v1/score", "/v1/rank"
_SCHEMAS = (ScoreRequest, ScoreReply, RankRequest, RankReply, ModelReply, ErrorReply)


class _RefusedError(Exception):
    """A request that gets no answer but an error: its code and message."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def create_app(
    settings: Settings,
    reloader: Reloader,
    metrics: ServingMetrics,
    registry: CollectorRegistry,
    clock_ms: Callable[[], int],
) -> FastAPI:
    """The application; it starts and stops the reloader."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        reloader.start()
        yield
        reloader.stop()

    app = FastAPI(
        title="Anabranch scoring worker",
        description="Fresh multi-task scores from the newest snapshot. Echo `request_id` in the events that follow.",
        version="1",
        lifespan=lifespan,
    )
    decoders: dict[str, msgspec.json.Decoder[Any]] = {
        _SCORE: msgspec.json.Decoder(ScoreRequest),
        _RANK: msgspec.json.Decoder(RankRequest),
    }
    encoder = msgspec.json.Encoder()

    async def answer(request: Request, route: str, work: Callable[[Scorer, Any, str, int], Reply]) -> Response:
        started = time.perf_counter()
        code = 200
        try:
            body = await _body(request, settings.serve.max_body_bytes)
            scorer = _ready(reloader)
            try:
                decoded = decoders[route].decode(body)
            except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
                raise _RefusedError(400, f"The body breaks the contract: {error}. See /docs.") from error
            # Scoring takes a millisecond or so: a thread would cost more than it frees.
            reply = encoder.encode(work(scorer, decoded, secrets.token_hex(8), clock_ms()))
        except ScoringError as error:
            code, reply = 422, encoder.encode(ErrorReply(str(error)))
        except _RefusedError as error:
            code, reply = error.code, encoder.encode(ErrorReply(str(error)))
        except ClientDisconnect:
            code, reply = _CLIENT_CLOSED, b""  # nobody reads it
        except Exception:
            log.exception("A request to %s failed.", route)
            code, reply = 500, encoder.encode(ErrorReply("The worker failed on this request; its log says why."))
        metrics.requests.labels(route, str(code)).inc()
        metrics.seconds.labels(route).observe(time.perf_counter() - started)
        return Response(reply, code, media_type=_JSON)

    @app.post(_SCORE, openapi_extra=_contract(ScoreRequest, ScoreReply))
    async def score(request: Request) -> Response:
        """One user, many items: a probability per task for each."""
        return await answer(request, _SCORE, Scorer.score)

    @app.post(_RANK, openapi_extra=_contract(RankRequest, RankReply))
    async def rank(request: Request) -> Response:
        """The same, ordered by a value function given in the request: `{"click": 1, "purchase": 20}`."""
        return await answer(request, _RANK, Scorer.rank)

    @app.get("/v1/model", openapi_extra=_contract(None, ModelReply))
    async def model() -> Response:
        """Which model is served, and how fresh it is."""
        scorer = reloader.scorer
        if scorer is None:
            return Response(encoder.encode(ErrorReply(_NOT_READY)), 503, media_type=_JSON)
        manifest: Manifest = scorer.manifest
        reply = ModelReply(
            model_version=manifest.version,
            delta=manifest.delta,
            model_age_s=scorer.age_seconds(clock_ms()),
            created_ms=manifest.created_ms,
            event_time_ms=manifest.event_time_ms,
            n_events=manifest.n_events,
            settings_fingerprint=manifest.settings_fingerprint,
            tasks=manifest.tasks,
            fields=list(manifest.layout.get("fields", [])),
            offsets=manifest.offsets,
        )
        return Response(encoder.encode(reply), media_type=_JSON)

    @app.get("/healthz")
    async def healthz() -> Response:
        """The process answers."""
        return Response(b'{"status":"ok"}', media_type=_JSON)

    @app.get("/readyz")
    async def readyz() -> Response:
        """A model is loaded and warm."""
        if reloader.scorer is None:
            return Response(encoder.encode(ErrorReply(_NOT_READY)), 503, media_type=_JSON)
        return Response(b'{"status":"ready"}', media_type=_JSON)

    @app.get("/metrics", include_in_schema=False)
    async def prometheus() -> Response:
        if reloader.scorer is not None:
            metrics.age.set(reloader.scorer.age_seconds(clock_ms()))
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    _describe(app)
    return app


_NOT_READY = "No snapshot is loaded yet: the learner has published none, or none under these settings (see the log)."


def _ready(reloader: Reloader) -> Scorer:
    if reloader.scorer is None:
        raise _RefusedError(503, _NOT_READY)
    return reloader.scorer


async def _body(request: Request, most_bytes: int) -> bytes:
    """The body, read no further than allowed: a length header may lie, or be absent."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most_bytes:
            raise _RefusedError(
                413, f"A body has at most {most_bytes} bytes; send fewer items, or raise serve.max_body_bytes."
            )
        parts.append(part)
    return b"".join(parts)


def _contract(request: type | None, reply: type) -> dict[str, Any]:
    """OpenAPI of a route whose body FastAPI does not parse."""

    def content(of: type) -> dict[str, Any]:
        return {_JSON: {"schema": {"$ref": f"#/components/schemas/{of.__name__}"}}}

    responses: dict[str, Any] = {"200": {"description": "The answer.", "content": content(reply)}}
    refused = (("400", "Not the contract's JSON."), ("413", "Too large."), ("422", "A rule is broken."))
    for code, text in (*(refused if request else ()), ("503", "No model yet.")):
        responses[code] = {"description": text, "content": content(ErrorReply)}
    extra: dict[str, Any] = {"responses": responses}
    if request is not None:
        extra["requestBody"] = {"required": True, "content": content(request)}
    return extra


def _describe(app: FastAPI) -> None:
    """Add the contract's types to the OpenAPI document."""
    _, components = msgspec.json.schema_components(_SCHEMAS, ref_template="#/components/schemas/{name}")
    document = app.openapi()
    document.setdefault("components", {}).setdefault("schemas", {}).update(components)
