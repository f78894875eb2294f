"""test_rooms: the rooms of daemon/ know only what is below them, so that they can be read in one order; so do
those of mapping/ and of mapping/catalog/.

How it works   Each import of one room by another is compared with ROOMS, from bottom to top. The command line
               and its like (daemon/client) know neither the service nor its objects. What a package lists as
               LAYERS is compared in the same way.
Errors         A complaint names the module, and what it imports.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# From bottom to top. A name is a folder of daemon/ or a file there; those of one line may know each other.
ROOMS = (
    ("errors", "ranges", "sizes", "version", "backup_errors"),
    ("types", "host"),
    ("state",),
    ("config", "engine_border", "events", "locks", "fill_level", "relocation_progress"),
    ("context", "consistent_read", "engine_log", "left_over", "operations", "isolation", "workers"),
    ("devices",),
    ("hooks",),
    ("volumes",),
    ("partitions",),
    ("snapshots", "processors"),
    ("groups", "space"),
    ("restores", "schedules"),
    ("renames",),
    ("clients",),
    ("debug",),
    ("api", "check", "hand_over", "service"),
    ("main", "process"),
)
LEVEL = {name: level for level, names in enumerate(ROOMS) for name in names}
# What a program that talks to polyvold has of it. `check` looks through a state directory itself.
CLIENT_KNOWS = {"backup_errors", "check", "errors", "host", "sizes", "state", "types", "version"}
# Routes are handed to `api` and handlers are methods of the service: types of these are named there.
ROUTES_KNOW = {"api", "service"}
# nbdkit's keeper asks the service inside nbdkit as a client does.
CLIENT_IS_KNOWN_BY = {"main", "process"}
# From bottom to top, as ROOMS: what is in these packages, by the package.
LAYERS = {
    "mapping": (
        ("clock", "durable", "ids", "extent", "fallocate", "label", "os_errors", "probes", "sizes"),
        ("errors", "no_space", "programs"),
        ("names", "opening", "partition"),
        ("direct", "identity", "occupied", "records"),
        ("device", "plans"),
        ("catalog",),
        ("specs",),
    ),
    "mapping.catalog": (
        ("failures", "mark", "readers", "rewrite", "sums"),
        ("examine",),
        ("copies",),
        ("database",),
        ("log_areas", "generations", "groups", "hooks", "renames", "restores", "scrubs", "settings"),
        ("clones", "devices", "rollbacks", "schedules"),
        ("snapshots", "volumes"),
        ("store",),
    ),
}


def imported(text: str, package: str = "daemon") -> Iterator[str]:
    """What a module imports of a package, below that: 'volumes.verbs.Volumes'."""
    whole = f"polyvol.{package}"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith(f"{whole}."):
            base = (node.module or "").removeprefix(whole).removeprefix(".")
            yield from (f"{base}.{alias.name}".removeprefix(".") for alias in node.names)


def upwards(package: str, module: str, text: str) -> list[str]:
    """Imports of a module ('records.volumes') of one of LAYERS that go upwards."""
    level = {name: height for height, names in enumerate(LAYERS[package]) for name in names}
    room = module.split(".")[0]
    others = [name for name in imported(text, package) if name.split(".")[0] != room]
    return [
        f"{package}.{module} imports {name}" for name in others if level[name.split(".")[0]] > level[room]
    ]


def complaints(module: str, text: str) -> list[str]:
    """Imports of a module ('volumes.verbs') that go upwards."""
    room, found = module.split(".")[0], []
    for name in imported(text):
        other = name.split(".")[0]
        if other == room:
            continue
        if room == "client":
            allowed = other in CLIENT_KNOWS
        elif other == "client":
            allowed = room in CLIENT_IS_KNOWN_BY
        elif module.endswith("routes") and other in ROUTES_KNOW:
            allowed = True
        else:
            allowed = LEVEL[other] <= LEVEL[room]
        if not allowed:
            found.append(f"daemon.{module} imports {name}: {room} may not know {other}")
    return found


def test_rooms_know_only_what_is_below_them() -> None:
    modules = sorted((ROOT / "daemon").rglob("*.py"))
    names = [".".join(path.relative_to(ROOT / "daemon").with_suffix("").parts) for path in modules]
    assert [
        each
        for name, path in zip(names, modules, strict=True)
        if name != "__init__"
        for each in complaints(name.removesuffix(".__init__"), path.read_text())
    ] == []


def test_an_import_that_goes_upwards_is_noticed() -> None:
    upwards = "from polyvol.daemon.snapshots.taker import SnapshotTaker\n"
    assert complaints("volumes.verbs", upwards)
    assert complaints("client.cli.volume", upwards)
    assert complaints("devices.verbs", "from polyvol.daemon import service\n")
    assert not complaints("groups.verbs", upwards)


@pytest.mark.parametrize("package", LAYERS)
def test_layers_know_only_what_is_below_them(package: str) -> None:
    folder = ROOT / package.replace(".", "/")
    names = {path: ".".join(path.relative_to(folder).with_suffix("").parts) for path in folder.rglob("*.py")}
    assert [
        each
        for path, name in sorted(names.items())
        if name != "__init__"
        for each in upwards(package, name.removesuffix(".__init__"), path.read_text())
    ] == []


def test_an_import_of_a_higher_layer_is_noticed() -> None:
    volumes = "from polyvol.mapping.catalog.volumes import Volumes\n"
    assert upwards("mapping", "records.volumes", volumes)
    assert upwards("mapping.catalog", "groups", volumes)
    assert not upwards("mapping.catalog", "store", volumes)
