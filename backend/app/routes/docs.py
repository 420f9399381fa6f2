"""Swagger UI at /docs. The service serves its files too, so the page works without internet access."""

from collections.abc import AsyncIterator
from functools import cache
from importlib.resources import files
from typing import Final

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import HTMLResponse, RedirectResponse, StreamingResponse

from app.core.errors import RouteNotFoundError
from app.http.authorization import public
from app.http.conditions import weak_tag
from app.http.fast_lane import JSONRoute

_ASSETS: Final = "/docs/assets"
_PART: Final = 65_536  # bytes
_CACHED: Final = {"Cache-Control": "public, max-age=3600"}
# Swagger UI needs an inline script, inline styles and data images. It connects only to this service.
_POLICY: Final = {
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}
_MEDIA_TYPES: Final = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon.png": "image/png",
}
# Each goes before a part of FastAPI's page (decision 43). A click unfolds headers, and replies other than a success.
# DELETE is the last operation. Hidden is what says nothing: the only media type, missing links, a default shown twice.
_ADDITIONS: Final = {
    "</head>": """<style>
    .response-col_links, .parameter__default, .response-control-media-type:has(option:only-child) { display: none }
    details :is(.response-col_status, .response-col_description__inner) { display: none }
    .swagger-ui .opblock table tbody tr td:nth-child(n) { padding: 4px 0 }
    .swagger-ui .opblock .renderedMarkdown p { margin: 0 0 4px } .swagger-ui .opblock .model-example { margin-top: 0 }
    .swagger-ui .opblock :is(.table-container, .responses-inner) { padding: 4px 20px }
    .swagger-ui summary { cursor: pointer; font-size: 14px }
    </style>
    """,
    "SwaggerUIBundle.presets.apis,": """({ React: { createElement: element } }) => {
            const fold = (title, content) => element("details", null, element("summary", null, title), content)
            const table = (row) => element("table", null, element("tbody", null, row))
            return { wrapComponents: {
                headers: (Headers) => (props) => props.headers?.size > 0
                    && fold("Headers: " + props.headers.keySeq().join(", "), element(Headers, props)),
                response: (Response) => (props) => props.code < "300" ? element(Response, props)
                    : element("tr", null, element("td", { colSpan: 3 },
                        fold(`${props.code} ${props.response.get("description")}`, table(element(Response, props))))),
            } }
        },
        """,
    "presets: [": """operationsSorter: (a, b) => (a.get("method") === "delete") - (b.get("method") === "delete"),
    """,
}
_FOLDER: Final = files("fastapi_offline") / "static"

router = APIRouter(include_in_schema=False, route_class=JSONRoute)  # for the entity tags


@router.get(_ASSETS + "/{name}")
@public
async def get_asset(name: str) -> StreamingResponse:
    """Returns a file of the page."""
    if name not in _MEDIA_TYPES:
        raise RouteNotFoundError
    content, tag = _read(name)
    headers = _CACHED | {"Content-Length": str(len(content)), "ETag": tag}
    return StreamingResponse(_parts(content), headers=headers, media_type=_MEDIA_TYPES[name])


@cache
def _read(name: str) -> tuple[bytes, str]:
    content = (_FOLDER / name).read_bytes()
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
        openapi_url=f"{root}{request.app.openapi_url}",
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
    html = bytes(page.body).decode()
    for part, addition in _ADDITIONS.items():
        html = html.replace(part, addition + part)
    return HTMLResponse(html, headers=_POLICY)


@router.get("/")
@public
async def get_root(request: Request) -> RedirectResponse:
    """Leads to the page."""
    return RedirectResponse(f"{request.scope.get('root_path', '')}/docs")
