"""The OpenAPI document, made of the routes and of the types of their bodies.

How it works      pydantic describes each type; a schema is named by the noun that its type has, so that
                  moving or splitting a module changes no name: VolumeView is 'Volume', VolumeCreate stays.
Errors            ValueError for two types with one name: rename one of them.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, cast

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
        if route.result not in (None, bytes):
            inputs.append((f"result {index}", "serialization", TypeAdapter(route.result)))
    refs, definitions = TypeAdapter.json_schemas(inputs, ref_template="#/components/schemas/{model}")
    paths: dict[str, dict[str, Any]] = {}
    for index, route in enumerate(routes):
        operation: dict[str, Any] = {
            "summary": route.summary,
            "parameters": _parameters(route),
            "responses": {
                str(route.status): _content(
                    "Done", refs.get((f"result {index}", "serialization"), {}), route
                ),
                "default": _content("Refused or failed", {"$ref": "#/components/schemas/Error"}),
            },
        }
        if route.body is not None:
            body = _content("", refs[f"body {index}", "validation"])
            operation["requestBody"] = {"required": True, "content": body["content"]}
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    schemas = {**definitions.get("$defs", {}), "Error": _ERROR_SCHEMA}
    names = {name: _public_name(name) for name in schemas}
    if len(set(names.values())) < len(names):
        raise ValueError(f"two types have one name: {sorted(names.values())}")
    document = {
        "openapi": "3.1.0",
        "info": {"title": "polyvol control API", "version": version},
        "paths": paths,
        "components": {
            "schemas": {names[name]: _with_title(schema, names[name]) for name, schema in schemas.items()}
        },
    }
    return cast("dict[str, Any]", _renamed(document, names))


def _public_name(name: str) -> str:
    """The name of a schema by pydantic's, which is the type's unless several types share it."""
    if not name.isalnum():
        raise ValueError(f"{name}: two types have this name, or one is both a body and a result")
    return name.removesuffix("View")


def _with_title(schema: dict[str, Any], title: str) -> dict[str, Any]:
    return schema | {"title": title}


def _renamed(value: object, names: Mapping[str, str]) -> object:
    """A part of the document, with the public names in its references."""
    if isinstance(value, dict):
        return {
            key: _reference(of, names) if key == "$ref" else _renamed(of, names) for key, of in value.items()
        }
    return [_renamed(each, names) for each in value] if isinstance(value, list) else value


def _reference(path: str, names: Mapping[str, str]) -> str:
    folder, _, name = path.rpartition("/")
    return f"{folder}/{names[name]}"


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


def _content(description: str, schema: dict[str, Any], route: Route | None = None) -> dict[str, Any]:
    is_file = route is not None and route.result is bytes
    kind = "application/octet-stream" if is_file else "application/json"
    return {"description": description, "content": {kind: {"schema": schema}}}
