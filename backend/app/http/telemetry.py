"""The route in log, span and metrics, where it is not the one that FastAPI's router chose."""

from types import SimpleNamespace
from typing import Final

from fastapi.telemetry._api import _route_selected
from opentelemetry.trace import get_current_span
from starlette.types import Scope

from app.http.fast_lane import effective_route

COLLECTED: Final = "fastapi.telemetry"  # FastAPI's key in the scope of a request with telemetry


def hide_user_text(scope: Scope) -> None:
    """Replace the path and the query, which have the user's id and words."""
    hidden = {"url.path": "REDACTED", **({"url.query": "REDACTED"} if scope["query_string"] else {})}
    get_current_span().set_attributes(hidden)


def note_route(scope: Scope) -> None:
    """Put the route on span and metrics. It is known when the reply begins, whoever has chosen it."""
    if request := scope[COLLECTED]:  # FastAPI excludes a request with None
        if request.route is None:  # for a mounted application, FastAPI has composed it
            _route_selected(scope=scope, path=getattr(effective_route(scope), "path_format", None))
        if request.route:
            get_current_span().set_attribute("url.path", request.route)


def name_route(scope: Scope, path: str) -> None:
    """Have the log, the span and the metrics name this path as the route. Metrics keep each one, so use few paths."""
    scope["fastapi"] = {**scope["fastapi"], "effective_route_context": SimpleNamespace(path=path, path_format=path)}
    _route_selected(scope=scope, path=path)
