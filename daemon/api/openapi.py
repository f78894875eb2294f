"""The OpenAPI document, made of the routes and of the types of their bodies."""

import re
from collections.abc import Iterable
from typing import Any

from pydantic import TypeAdapter

from polyvol.daemon.api.route import Route

_ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message", "hint"],
            "properties": {
                "code": {"type": "string", "description": "Stable; docs/errors.md lists all"},
                "message": {"type": "string", "description": "What is wrong"},
                "hint": {"type": "string", "description": "What to do about it; may be empty"},
            },
        }
    },
}


def openapi_document(routes: Iterable[Route], version: str) -> dict[str, Any]:
    """The document."""
    routes = list(routes)
    inputs: list[tuple[Any, Any, TypeAdapter[Any]]] = []
    for index, route in enumerate(routes):
        if route.body is not None:
            inputs.append((f"body {index}", "validation", TypeAdapter(route.body)))
        if route.result is not None:
            inputs.append((f"result {index}", "serialization", TypeAdapter(route.result)))
    refs, definitions = TypeAdapter.json_schemas(inputs, ref_template="#/components/schemas/{model}")
    paths: dict[str, dict[str, Any]] = {}
    for index, route in enumerate(routes):
        operation: dict[str, Any] = {
            "summary": route.summary,
            "parameters": _parameters(route),
            "responses": {
                str(route.status): _content("Done", refs.get((f"result {index}", "serialization"), {})),
                "default": _content("Refused or failed", {"$ref": "#/components/schemas/Error"}),
            },
        }
        if route.body is not None:
            body = _content("", refs[f"body {index}", "validation"])
            operation["requestBody"] = {"required": True, "content": body["content"]}
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    schemas = {**definitions.get("$defs", {}), "Error": _ERROR_SCHEMA}
    return {
        "openapi": "3.1.0",
        "info": {"title": "polyvol control API", "version": version},
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _parameters(route: Route) -> list[dict[str, Any]]:
    in_path = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", route.path)
    ]
    in_query = [
        {"name": name, "in": "query", "required": False, "description": text, "schema": {"type": kind}}
        for name, kind, text in route.query
    ]
    return in_path + in_query


def _content(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}
