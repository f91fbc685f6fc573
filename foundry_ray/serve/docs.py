"""The description of the HTTP interface as a page: no scripts, nothing from other sites."""

from __future__ import annotations

from html import escape
from typing import Any

from fastapi.responses import HTMLResponse

from foundry_ray.serve.routes.pages import page


def documentation(described: dict[str, Any]) -> HTMLResponse:
    """Return a page with every operation of an OpenAPI description."""
    by_tag: dict[str, list[str]] = {}
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            tag = (operation.get("tags") or ["other"])[0]
            by_tag.setdefault(tag, []).append(_operation(method, path, operation))
    parts = [
        '<p>The same for programs: <a href="/api/openapi.json">/api/openapi.json</a>. Errors are'
        " <code>application/problem+json</code> with a <code>code</code>.</p>"
    ]
    for tag, shown in by_tag.items():
        parts.append(f"<h2>{escape(tag)}</h2>{''.join(shown)}")
    return page("Foundry's HTTP interface", "".join(parts))


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    told = "<br>".join(
        escape(line) for line in operation.get("description", "").strip().splitlines()
    )
    rows = [
        f"<li>{escape(one['in'])} <code>{escape(one['name'])}</code>{_needed(one)}"
        f" {escape(one.get('description', ''))}</li>"
        for one in operation.get("parameters", [])
    ]
    content = operation.get("requestBody", {}).get("content", {})
    for kind, body in content.items():
        rows.append(f"<li>body {escape(kind)}: {_schema(body.get('schema', {}))}</li>")
    for status, answer in operation["responses"].items():
        rows.append(f"<li>{escape(status)}: {_answer(answer)}</li>")
    return (
        f"<h3><code>{escape(method.upper())} {escape(path)}</code></h3>"
        f"<p>{told}</p><ul>{''.join(rows)}</ul>"
    )


def _needed(parameter: dict[str, Any]) -> str:
    return " (required)" if parameter.get("required") else ""


def _answer(answer: dict[str, Any]) -> str:
    shapes = [_schema(one.get("schema", {})) for one in answer.get("content", {}).values()]
    text = escape(answer.get("description", ""))
    return f"{text}, {shapes[0]}" if shapes and shapes[0] else text


def _schema(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return f"<code>{escape(schema['$ref'].rsplit('/', 1)[-1])}</code>"
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            return " or ".join(filter(None, (_schema(one) for one in schema[choice])))
    return escape(str(schema.get("title") or schema.get("type") or ""))
