"""Swagger UI at /docs, and its OpenAPI document. The page works without internet access: its files are served too."""

from collections.abc import AsyncIterator
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, StreamingResponse

from app.core.errors import RouteNotFoundError
from app.core.project import ROOT
from app.http.authorization import public
from app.http.conditions import weak_tag
from app.http.fast_lane import JSONRoute

_ASSETS: Final = "/docs/assets"
_DOCUMENT: Final = "/openapi.json"
_PART: Final = 65_536  # bytes
_CACHED: Final = {"Cache-Control": "public, max-age=3600"}
# Swagger UI needs an inline script, inline styles and data images. It connects only to this service.
_POLICY: Final = {
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}
_SWAGGER: Final = files("fastapi_offline") / "static"
_HERE: Final = Path(__file__).parent
_GUIDES: Final = ROOT / "docs"
_FILES: Final[dict[str, tuple[str, list[Traversable]]]] = {
    "swagger-ui-bundle.js": ("text/javascript", [_SWAGGER / "swagger-ui-bundle.js", _HERE / "docs.js"]),
    "swagger-ui.css": ("text/css", [_SWAGGER / "swagger-ui.css", _HERE / "docs.css"]),
    "favicon.png": ("image/png", [_SWAGGER / "favicon.png"]),
    **{name: ("text/plain", [_GUIDES / name]) for name in ("agents.md", "api.md", "auth.md", "frontend.md")},
}

router = APIRouter(include_in_schema=False, route_class=JSONRoute)  # for the entity tags


@router.get(_ASSETS + "/{name}")
@public
async def get_asset(name: str) -> StreamingResponse:
    """Returns a file of the page, or a guide that it or another guide links to."""
    if name not in _FILES:
        raise RouteNotFoundError
    content, tag = _read(name)
    headers = _CACHED | {"Content-Length": str(len(content)), "ETag": tag}
    return StreamingResponse(_parts(content), headers=headers, media_type=_FILES[name][0])


@cache
def _read(name: str) -> tuple[bytes, str]:
    content = b"".join(file.read_bytes() for file in _FILES[name][1])
    return content, weak_tag(content).decode()


async def _parts(content: bytes) -> AsyncIterator[bytes]:
    """Yields the content in parts, so that a client that does not read its reply occupies no copy of the file."""
    for start in range(0, len(content), _PART):
        yield content[start : start + _PART]


@router.get("/docs")
@public
async def get_docs(request: Request) -> HTMLResponse:
    """Returns Swagger UI."""
    root = request.scope.get("root_path", "")
    page = get_swagger_ui_html(
        openapi_url=f"{root}{_DOCUMENT}",
        title=request.app.title,
        swagger_js_url=f"{root}{_ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{root}{_ASSETS}/swagger-ui.css",
        swagger_favicon_url=f"{root}{_ASSETS}/favicon.png",
        swagger_ui_parameters={
            "displayRequestDuration": True,
            "persistAuthorization": True,
            "showCommonExtensions": False,
        },
    )
    page.headers.update(_POLICY)
    return page


@router.get(_DOCUMENT)
@public
async def get_document(request: Request) -> JSONResponse:
    """Returns the OpenAPI document. Behind a prefix it says so, as FastAPI's own does."""
    document, root = request.app.openapi(), request.scope.get("root_path", "")
    servers = [{"url": root}, *document.get("servers", ())]
    return JSONResponse({**document, "servers": servers} if root else document)


@router.get("/")
@public
async def get_root(request: Request) -> RedirectResponse:
    """Leads to the page."""
    return RedirectResponse(f"{request.scope.get('root_path', '')}/docs")
