"""Builds the application. Nothing happens at import."""

import asyncio
import gc
import logging
import multiprocessing
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, TypedDict

from fastapi import FastAPI
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from starlette.types import ASGIApp

from app import __version__
from app.core.config import UNCHECKED, Settings, load_settings
from app.core.database import Database
from app.core.errors import StartupError
from app.core.security.tokens import KeySource, SharedSecret, TokenVerifier
from app.http.contract import ContractRoutes
from app.http.headers import REQUEST_HEADERS, RESPONSE_HEADERS
from app.http.middleware import RequestMiddleware
from app.http.openapi import DESCRIPTION, install_openapi
from app.http.problems import METHODS, install_error_handlers
from app.models.task import USER_ID_PATTERN, Task
from app.routes import health, tasks
from app.routes.docs import install_docs

_COLLECTED_AFTER: Final = 10_000  # objects; Python's 700 are those of some ten requests

_logger = logging.getLogger("app")


class TasksAPI(FastAPI):
    """FastAPI with one layer around the routes instead of its five, around each of which a request would go."""

    def __init__(self, settings: Settings, **options: Any) -> None:
        """`options` are FastAPI's."""
        super().__init__(**options)
        self._cors = {
            "allow_origins": settings.cors_origins,
            "allow_methods": METHODS,
            "allow_headers": ("Authorization", "Content-Type", "X-Request-ID", *REQUEST_HEADERS),
            "allow_credentials": True,
            "expose_headers": [name for name in RESPONSE_HEADERS if name != "Cache-Control"],
        }
        self._loopback_only = not settings.authenticates

    def build_middleware_stack(self) -> ASGIApp:
        """Returns the routes and what is around them. What `add_middleware` has added stands outside."""
        app: ASGIApp = RequestMiddleware(
            ContractRoutes(self.routes, AsyncExitStackMiddleware(self.router)),
            handlers=self.exception_handlers,
            cors=self._cors,
            loopback_only=self._loopback_only,
        )
        for layer, args, options in reversed(self.user_middleware):
            app = layer(app, *args, **options)
        return app


class _State(TypedDict):
    database: Database
    tokens: TokenVerifier | None


def create_app(settings: Settings | None = None) -> FastAPI:
    """Returns the service, which connects to `settings.database_url` when it is started."""
    settings = settings or load_settings()
    app = TasksAPI(
        settings,
        title="Tasks API",
        version=__version__,
        description=DESCRIPTION,
        contact={"name": "Tasks API"},
        license_info={"name": "MIT", "identifier": "MIT"},
        openapi_tags=[
            {"name": "tasks", "description": "Create, list, read, change, complete and delete a user's tasks."},
            {"name": "health", "description": "For load balancers and orchestrators."},
        ],
        lifespan=_lifespan(settings),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    # `include_router` would look through the routes of a router twice for each request.
    app.router.routes.extend([*tasks.router.routes, *health.router.routes])
    install_docs(app)
    install_error_handlers(app)
    install_openapi(app, authenticates=settings.authenticates)
    return app


def _lifespan(settings: Settings) -> Callable[[FastAPI], AbstractAsyncContextManager[_State]]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[_State]:
        _stop_with_parent()
        if settings.database_url is None:
            message = "DATABASE_URL is not set; `python -m app` starts an embedded PostgreSQL instead."
            raise StartupError(message)
        database = Database(
            settings.database_url.get_secret_value(),
            pool_size=settings.database_pool_size,
            pool_timeout=settings.database_pool_timeout,
            concurrency_limit=settings.concurrency_limit,
            prepares=settings.prepares,
            tables=(str(Task.__tablename__),),
        )
        try:
            await database.check()
            async with _verifier(settings) as tokens:
                _spare_the_collector()
                yield {"database": database, "tokens": tokens}
        finally:
            await database.close()

    return lifespan


@asynccontextmanager
async def _verifier(settings: Settings) -> AsyncIterator[TokenVerifier | None]:
    """Yields what checks tokens, None without authentication."""
    if settings.auth_jwks_url:
        from app.core.security.jwks import JwksClient  # noqa: PLC0415  # see app.core.config

        async with JwksClient(settings.auth_jwks_url) as keys:
            yield _verifier_with(keys, settings)
    elif settings.auth_jwt_secret:
        yield _verifier_with(SharedSecret(settings.auth_jwt_secret.get_secret_value()), settings)
    else:
        _logger.warning("authentication is off: whoever reaches the port may name any user")
        yield None


def _verifier_with(keys: KeySource, settings: Settings) -> TokenVerifier:
    return TokenVerifier(
        keys,
        user_id_pattern=USER_ID_PATTERN,
        user_id_claim=settings.auth_user_id_claim,
        issuer=None if settings.auth_issuer == UNCHECKED else settings.auth_issuer,
        audience=None if settings.auth_audience == UNCHECKED else settings.auth_audience,
        leeway=settings.auth_leeway_seconds,
    )


def _spare_the_collector() -> None:
    """What is there now stays: to look through it again stopped all requests for some 40 ms at a time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECTED_AFTER)


def _stop_with_parent() -> None:
    """A worker whose parent was killed would keep the port: have it stop like on SIGTERM."""
    parent = multiprocessing.parent_process()
    loop = asyncio.get_running_loop()

    def stop(sentinel: int) -> None:  # pragma: no cover  # in a worker that outlives its parent
        loop.remove_reader(sentinel)
        signal.raise_signal(signal.SIGTERM)

    if parent:  # pragma: no cover  # in workers, which uvicorn spawns
        loop.add_reader(parent.sentinel, stop, parent.sentinel)
