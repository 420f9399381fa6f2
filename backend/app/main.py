"""Builds the application. Importing this module has no side effects."""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, TypedDict

from fastapi import FastAPI
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.routing import iter_route_contexts
from fastapi.telemetry._asgi import ExceptionTelemetryMiddleware
from sqlmodel import SQLModel
from starlette.routing import WebSocketRoute
from starlette.types import ASGIApp

from app import __version__
from app.core import telemetry
from app.core.config import Settings, load_settings
from app.core.database import Database
from app.core.errors import StartupError
from app.core.security.loopback import is_loopback
from app.core.security.tokens import KeySource, SharedSecret, TokenVerifier
from app.http.authorization import AuthorizationMiddleware, check_routes
from app.http.fast_lane import FastLane
from app.http.headers import RESPONSE_HEADERS
from app.http.middleware import RequestMiddleware, error_middleware
from app.http.openapi import complete_document, description, operation_id
from app.http.problems import METHODS, install_error_handlers
from app.models.task import USER_ID_PATTERN
from app.routes import docs, health, tasks

_COLLECTED_AFTER: Final = 10_000  # objects; Python's default of 700 is reached after some ten requests

_logger = logging.getLogger("app")


class TasksAPI(FastAPI):
    """FastAPI with authorization under `/api`, problem details for every error, and the fast lane."""

    def __init__(self, settings: Settings, **options: Any) -> None:
        """`options` are passed to FastAPI."""
        super().__init__(**options)
        self._cors = {
            "allow_origins": settings.cors_origins,
            "allow_methods": METHODS,
            "allow_headers": ("*",),  # a header gives a listed origin nothing that it may not do anyway
            "allow_credentials": True,
            "allow_private_network": is_loopback(settings.host),  # or pages of the internet would reach a LAN
            "expose_headers": [name for name in RESPONSE_HEADERS if name != "Cache-Control"],
        }
        self._settings = settings

    def build_middleware_stack(self) -> ASGIApp:
        """Returns FastAPI's own stack with three changes.

        AuthorizationMiddleware and FastLane precede the router. RequestMiddleware replaces ServerErrorMiddleware.
        RequestMiddleware also handles exceptions, so ExceptionMiddleware is present only inside added middleware, which
        must see responses instead of exceptions.
        """
        if not self._native_telemetry.enabled():  # FastAPI would look for providers in each request, which takes 7 µs
            self._telemetry["tracing"] = self._telemetry["metrics"] = False
        app: ASGIApp = FastLane(AsyncExitStackMiddleware(self.router), self)
        app = AuthorizationMiddleware(app, self.routes, self._settings.public_url)
        if self._telemetry["tracing"]:
            app = ExceptionTelemetryMiddleware(app)
        if self.user_middleware:
            app = error_middleware(app, self.exception_handlers)
        for layer, args, options in reversed(self.user_middleware):
            app = layer(app, *args, **options)
        return RequestMiddleware(app, self, self._settings, cors=self._cors)

    def openapi(self) -> dict[str, Any]:
        """Returns the OpenAPI document with the security, errors and headers of every operation."""
        known = self.openapi_schema
        document = super().openapi()
        if document is not known:  # FastAPI has rebuilt it
            complete_document(
                document,
                self.routes,
                authenticates=self._settings.authenticates,
                keeps=self._settings.keeps,
            )
        return document


class _State(TypedDict):
    database: Database
    tokens: TokenVerifier | None


def create_app(settings: Settings | None = None, *, bounded: bool = False) -> FastAPI:
    """Returns the application, which connects to `settings.database_url` at startup.

    `bounded` means that the server limits slow and endless requests, like the server of `python -m app`. If it does
    not, the application logs a warning at startup. Raises StartupError for a route that `check_routes` refuses, and
    for a value of OpenTelemetry that cannot work.
    """
    settings = settings or load_settings()
    telemetry.start()
    app = TasksAPI(
        settings,
        title="Tasks API",
        version=__version__,
        description=description(authenticates=settings.authenticates, keeps=settings.keeps),
        contact={"name": "Tasks API"},
        license_info={"name": "MIT", "identifier": "MIT"},
        openapi_tags=[
            {"name": "tasks", "description": "Create, list, read, update, complete and delete a user's tasks."},
            {"name": "health", "description": "For load balancers and orchestrators."},
        ],
        lifespan=_lifespan(settings, bounded=bounded),
        openapi_url=None,  # routes/docs.py has the document and the page
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=operation_id,
        redirect_slashes=False,
        telemetry={"logs": False, "auto_configure": False},  # app.core.exporters configures
    )
    install_error_handlers(app)
    if settings.serves_tools:
        # Its import takes half a second and needs requirements-mcp.txt.
        from app.routes import mcp  # noqa: PLC0415

        app.include_router(mcp.router_of(settings))  # first: AuthorizationMiddleware tries the routes in this order
    app.include_router(tasks.router)
    app.include_router(health.router)
    app.include_router(docs.router)
    check_routes(app.router)
    return app


def create_bounded_app() -> FastAPI:
    """Returns the application for the server of `python -m app`. An application factory for uvicorn."""
    return create_app(bounded=True)


def __getattr__(name: str) -> FastAPI:
    """Returns `app`, which is built at its first use: `uvicorn app.main:app`, `fastapi dev`. See PEP 562."""
    if name == "app":
        globals()[name] = app = create_app()
        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), "app"]


def _lifespan(settings: Settings, *, bounded: bool) -> Callable[[FastAPI], AbstractAsyncContextManager[_State]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[_State]:
        check_routes(app.router)  # again, because routes may have been added
        if not bounded:
            _logger.warning("this server does not bound what a connection may send; `python -m app` does")
            for warning in settings.warnings:
                _logger.warning(warning)
            if settings.model_fields_set & {"log_level", "log_format"}:
                _logger.warning("LOG_LEVEL and LOG_FORMAT have no effect: this server's own options configure the log")
            if not settings.authenticates:
                _logger.warning("authentication is off: whoever reaches the port may name any user")
        elif any(isinstance(each.original_route, WebSocketRoute) for each in iter_route_contexts(app.routes)):
            _logger.warning("`python -m app` does not serve the WebSockets of this application; another server does")
        if settings.database_url is None:
            raise StartupError("DATABASE_URL is not set; `python -m app` starts an embedded PostgreSQL instead.")
        database = Database(
            settings.database_url.get_secret_value(),
            pool_size=settings.database_pool_size,
            pool_timeout=settings.database_pool_timeout,
            concurrency_limit=settings.concurrency_limit,
            prepares=settings.prepares,
            keeps=settings.keeps,
            tables=SQLModel.metadata.tables.values(),
        )
        telemetry.observe_pool(database.pool_numbers)
        try:
            await database.check()
            async with _verifier(settings) as tokens:
                _freeze_startup_objects()
                yield {"database": database, "tokens": tokens}
        finally:
            flushing = asyncio.create_task(telemetry.flush())
            await database.close()
            await flushing

    return lifespan


@asynccontextmanager
async def _verifier(settings: Settings) -> AsyncIterator[TokenVerifier | None]:
    """Yields the verifier of tokens, None if authentication is off."""
    if settings.auth_jwks_url:
        from app.core.security.jwks import JwksClient  # noqa: PLC0415  # see app.core.config

        async with JwksClient(settings.auth_jwks_url) as keys:
            telemetry.observe_keys(lambda: keys.age)
            yield _verifier_with(keys, settings)
    elif settings.auth_jwt_secret:
        yield _verifier_with(SharedSecret(settings.auth_jwt_secret.get_secret_value()), settings)
    else:
        yield None


def _verifier_with(keys: KeySource, settings: Settings) -> TokenVerifier:
    return TokenVerifier(
        keys,
        user_id_pattern=USER_ID_PATTERN,
        user_id_claim=settings.auth_user_id_claim,
        issuer=settings.auth_issuer,
        audience=settings.auth_audience,
        leeway=settings.auth_leeway_seconds,
    )


def _freeze_startup_objects() -> None:
    """Exclude startup objects from garbage collection: full collections paused requests for some 40 ms."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECTED_AFTER)
