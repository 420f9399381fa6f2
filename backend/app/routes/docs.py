"""Swagger UI at /docs, with its files served from here: it works without the internet."""

from importlib.resources import files
from typing import Final

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles

_ASSETS: Final = "/docs/assets"


def install_docs(app: FastAPI) -> None:
    """Have `app` serve `/docs`, and lead there from `/`."""
    assets = StaticFiles(directory=str(files("fastapi_offline") / "static"))

    @app.get(_ASSETS + "/{name}", include_in_schema=False)
    async def get_asset(name: str, request: Request) -> Response:
        return await assets.get_response(name, request.scope)

    @app.get("/docs", include_in_schema=False)
    async def get_docs(request: Request) -> HTMLResponse:
        root = request.scope.get("root_path", "")
        return get_swagger_ui_html(
            openapi_url=f"{root}{app.openapi_url}",
            title=app.title,
            swagger_js_url=f"{root}{_ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{root}{_ASSETS}/swagger-ui.css",
            swagger_favicon_url=f"{root}{_ASSETS}/favicon.png",
            swagger_ui_parameters={"displayRequestDuration": True},
        )

    @app.get("/", include_in_schema=False)
    async def get_root(request: Request) -> RedirectResponse:
        return RedirectResponse(f"{request.scope.get('root_path', '')}/docs")
