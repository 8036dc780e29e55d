"""The page and its parts, out of one folder; and /docs, made here from the description of the interface."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from cliplet.serve.originals import unchanged_or
from cliplet.serve.refusals import Refused

WEB = Path(__file__).parent / "web"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
    ".txt": "text/plain; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".webp": "image/webp",
    ".ico": "image/vnd.microsoft.icon",
    ".woff2": "font/woff2",
}
INDEX = "index.html"
ICONS = ("favicon.ico", "icon.png", "icon.svg")


def web_files(folder: Path = WEB) -> dict[str, Path]:
    """What may be asked for below /static/, by name: the files in `folder` that are of a known type."""
    files = (file for file in sorted(folder.rglob("*")) if file.suffix in TYPES and file.is_file())
    return {file.relative_to(folder).as_posix(): file for file in files}


def pages_router(files: dict[str, Path]) -> APIRouter:
    """/, /static/... and /favicon.ico. A name is looked up among `files` and never becomes a path."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def index(request: Request) -> Response:
        return _sent(request, files.get(INDEX))

    @router.get("/static/{name:path}")
    async def static(request: Request, name: str) -> Response:
        return _sent(request, files.get(name))

    @router.get("/favicon.ico")
    async def icon(request: Request) -> Response:
        return _sent(request, next((files[name] for name in ICONS if name in files), None))

    return router


def _sent(request: Request, file: Path | None) -> Response:
    """A small file, read anew each time: it may have been installed anew."""
    try:
        content = file.read_bytes() if file else None
    except OSError:
        content = None
    if file is None or content is None:
        raise Refused(404, "there is no such page", "The search page is at /.")
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {"content-type": TYPES[file.suffix], "etag": tag, "cache-control": "no-cache"}
    return unchanged_or(request.headers, content, headers)


def docs_page(described: dict[str, Any]) -> Response:
    """The interface as a plain page. `described`: as in /openapi.json."""
    from cliplet.page_style import STYLE

    parts = [_operation(*one) for one in _operations(described)]
    schemas = described.get("components", {}).get("schemas", {})
    parts += ["<h2>Objects</h2>", *(_schema(name, schema) for name, schema in sorted(schemas.items()))]
    allowed = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    title = escape(f"{described['info']['title']} {described['info']['version']}")
    page = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body><h1>{title}</h1>'
        f"<p>{escape(described['info'].get('description', ''))}</p>"
        f'<p><a href="/openapi.json">openapi.json</a></p>{"".join(parts)}</body></html>'
    )
    policy = f"default-src 'none'; style-src 'sha256-{allowed}'; base-uri 'none'; frame-ancestors 'none'"
    return Response(page, media_type="text/html", headers={"content-security-policy": policy})


def _operations(described: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method.upper(), path, operation)
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    ]


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    rows = [
        (one["name"], _type(one.get("schema", {})), one.get("description", ""))
        for one in operation.get("parameters", [])
    ]
    bodies = operation.get("requestBody", {}).get("content", {})
    rows += [(f"body ({kind})", _type(body.get("schema", {})), "") for kind, body in bodies.items()]
    answers = operation.get("responses", {}).get("200", {}).get("content", {})
    rows += [(f"answer ({kind})", _type(answer.get("schema", {})), "") for kind, answer in answers.items()]
    told = escape(operation.get("description") or operation.get("summary", ""))
    return f"<h3><code>{method} {escape(path)}</code></h3><p>{told}</p>{_table(rows)}"


def _schema(name: str, schema: dict[str, Any]) -> str:
    fields = schema.get("properties", {})
    rows = [(field, _type(one), one.get("description", "")) for field, one in fields.items()]
    return f"<h3>{escape(name)}</h3><p>{escape(schema.get('description', ''))}</p>{_table(rows)}"


def _table(rows: list[tuple[str, str, str]]) -> str:
    cells = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(kind)}</td><td>{escape(told)}</td></tr>" for name, kind, told in rows
    )
    return f"<table>{cells}</table>" if cells else ""


def _type(schema: dict[str, Any]) -> str:
    """A schema in a few words: `list of Hit`, `integer, 1 to 1000`."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    limits = [f"{word} {schema[key]}" for key, word in (("minimum", "from"), ("maximum", "to")) if key in schema]
    return " ".join([str(schema.get("type", "anything")), *limits])
