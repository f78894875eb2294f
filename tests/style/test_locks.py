"""test_locks: the locks of objects are taken in one place, and by verbs, as daemon/locks.py says.

How it works   Calls of the methods of `Locks` are looked for in daemon/. They are in context.py, or where
               PLACES says why not. The service and the routes hold nothing: verbs do.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TAKING = {"volumes", "group", "device", "room", "lent"}
HOLDING = {"holding", "holding_served", "holding_all", "holding_group", "holding_device", "catalog_lock"}
PLACES = {
    "context.py": {"volumes", "group", "device"},
    "snapshots/taker.py": {"volumes", "lent"},  # it says itself what has changed while hooks ran
    "space/change_logs.py": {"room"},  # nobody else makes room
}


def taken(text: str) -> set[str]:
    """The methods of `Locks` that a module calls."""
    calls = (node.func for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))
    return {
        call.attr
        for call in calls
        if isinstance(call, ast.Attribute)
        and call.attr in TAKING
        and isinstance(call.value, ast.Attribute)
        and call.value.attr == "locks"
    }


def held(text: str) -> set[str]:
    """What a module holds by the context."""
    return {
        node.attr
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute) and node.attr in HOLDING
    }


def test_locks_are_taken_in_the_context() -> None:
    found = {
        str(path.relative_to(ROOT / "daemon")): taken(path.read_text())
        for path in (ROOT / "daemon").rglob("*.py")
    }
    assert {name: names for name, names in found.items() if names} == PLACES


def test_the_service_and_the_routes_hold_nothing() -> None:
    paths = [ROOT / "daemon/service.py", *(ROOT / "daemon").glob("*/*routes.py")]
    assert len(paths) > 5
    assert {str(path): held(path.read_text()) for path in paths if held(path.read_text())} == {}


def test_a_lock_that_is_taken_elsewhere_is_noticed() -> None:
    assert taken("with self._context.locks.volumes({1: 'v'}, 'volume grow'): pass\n") == {"volumes"}
    assert held("with self._context.holding('v', 'volume set'): pass\n") == {"holding"}
