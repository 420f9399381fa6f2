"""The path of a request: its slashes, and the prefix that a proxy takes away."""

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from fastapi.routing import RouteContext, iter_route_contexts
from starlette._utils import get_route_path
from starlette.convertors import PathConvertor
from starlette.routing import BaseRoute
from starlette.types import Scope


def add_root_path(scope: Scope, root_path: str) -> None:
    """Put the prefix before the path, as in ASGI. Routes match what follows it.

    A `root_path` of the server stays; uvicorn has put it before the path.
    """
    # A request that the server refuses has the path `*`.
    if scope.get("path", "").startswith("/") and not scope.get("root_path"):
        raw = {"raw_path": root_path.encode() + scope["raw_path"]} if scope.get("raw_path") else {}
        scope.update(root_path=root_path, path=root_path + scope["path"], **raw)


class RoutePaths:
    """The paths of all routes. A path that differs from theirs only in doubled, extra or missing slashes leads to them.

    `any_end_in_slash` is whether a request may lack a slash that its route has.
    """

    def __init__(self, routes: Sequence[BaseRoute]) -> None:
        self._contexts: list[Any] = [each for each in iter_route_contexts(routes) if hasattr(each, "path_regex")]
        # Mounts come last: one at the root takes every path.
        self._groups = [
            [each.path_regex for each in self._contexts if _is_greedy(each) is last] for last in (False, True)
        ]
        self.any_end_in_slash = any(re.search(r"[^^]/\$$", pattern.pattern) for pattern in self._groups[0])

    def of(self, path: str) -> str | None:
        """Returns the path of the first route that may be meant, whatever the method."""
        return next((each.path for each in self._contexts if each.path_regex.match(path)), None)

    def correct(self, scope: Scope) -> None:
        """Set `path` and `raw_path` to the first spelling that a route has. If none has one, they stay as sent."""
        raw = scope.get("raw_path") or quote(scope["path"]).encode()
        spellings = [*zip(_spellings(scope["path"]), _spellings(raw.decode("latin-1")), strict=True)]
        for patterns in self._groups:
            for path, raw_path in spellings:
                found = get_route_path({**scope, "path": path})
                if any(pattern.match(found) for pattern in patterns):
                    scope.update(path=path, raw_path=raw_path.encode("latin-1"))
                    return


def _is_greedy(context: RouteContext) -> bool:
    """Whether the route is a mount or has a parameter of the form `{name:path}`."""
    return any(isinstance(convertor, PathConvertor) for convertor in context.param_convertors.values())


def _spellings(path: str) -> list[str]:
    """Returns the path as sent, without doubled slashes, and then with or without a slash at its end."""
    single = re.sub("//+", "/", path)
    return [path, single, single.removesuffix("/") if single.endswith("/") else f"{single}/"]
