"""test_openapi: the names of the schemas that the API's description has.

How it works      The document is made of the routes as the daemon makes it; small ones show what is refused.
"""

import json
import re
from dataclasses import make_dataclass

import pytest

from polyvol.daemon.api.application import ROUTES
from polyvol.daemon.api.openapi import openapi_document
from polyvol.daemon.api.route import Route


def test_each_schema_is_named_by_its_noun() -> None:
    document = openapi_document(ROUTES, "1")
    schemas = document["components"]["schemas"]
    assert [name for name in schemas if not re.fullmatch(r"([A-Z][a-z]+)+", name)] == []
    assert [name for name in schemas if re.search(r"View$|polyvol|Input$|Output$", name)] == []
    assert {name: schema["title"] for name, schema in schemas.items()} == {name: name for name in schemas}
    assert {"Volume", "Snapshot", "Device", "Group", "Schedule", "Error"} <= set(schemas)
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert references == set(schemas)


def route(result: type, body: type | None = None) -> Route:
    return Route("POST", f"/v1/{id(result)}", "A route", lambda _service, _call: None, result, body)


def test_two_types_with_one_name_are_refused() -> None:
    """pydantic would name them by their modules."""
    first, second = (make_dataclass("KeptView", [(module, str)]) for module in "ab")
    first.__module__, second.__module__ = "a", "b"
    with pytest.raises(ValueError, match="KeptView: two types"):
        openapi_document([route(first), route(second)], "1")
    with pytest.raises(ValueError, match="one name"):
        openapi_document([route(first), route(make_dataclass("Kept", [("name", str)]))], "1")
    assert openapi_document([route(first)], "1")["components"]["schemas"].keys() == {"Kept", "Error"}
