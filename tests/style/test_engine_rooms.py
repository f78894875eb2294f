"""test_engine_rooms: the rooms of engine/src know only what is below them; imports make no circles.

How it works   The paths that a file imports or names (`use crate::...`, `super::...`, `crate::a::b` in the
               text) are resolved to files. Rooms (files and folders at the top) are compared with ROOMS, from
               bottom to top. Circles of imports between files are refused, except those of RING. That files
               in a folder import its `mod.rs`, which imports them, is no circle. Tests are exempt.
Errors         A complaint names the file, and what it imports.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[2] / "engine" / "src"

# From bottom to top. A room knows those of the lines above its own.
ROOMS = (
    ("error", "mutants", "sync", "units"),
    ("buffer", "checksum", "events", "limits", "log"),
    ("block_map", "request", "system"),
    ("io",),
    ("change_log",),
    ("geometry",),
    ("processor",),
    ("volume",),
    ("engine", "nbd"),
    ("python", "simulator", "fuzz", "models"),
)
LEVEL = {name: level for level, names in enumerate(ROOMS) for name in names}

# A message brings a processor a share, and a share sends messages: files that send or take them are in it.
# The verbs of a share are methods of one type in many files: processor::share is exempt with all its files.
# The methods of a simulation are in two.
RING = {
    "processor::cold",
    "processor::cut",
    "processor::durable",
    "processor::flusher",
    "processor::inspect",
    "processor::messages",
    "processor::queue",
    "processor::run",
    "processor::runner",
    "processor::share",
    "processor::space_waiters",
    "simulator::driver",
    "simulator::tamper",
}


def module_of(path: Path) -> str:
    """The name of a file: 'processor::share' of processor/share/mod.rs."""
    parts = path.relative_to(SOURCES).with_suffix("").parts
    return "::".join(parts[:-1] if parts[-1] in ("mod", "lib") else parts)


def alternatives(tree: str) -> Iterator[str]:
    """The paths of a `use`: 'a::{b, c::{d, e}}' is a::b, a::c::d and a::c::e."""
    found = re.match(r"([^{]*)\{(.*)\}\s*$", tree, re.DOTALL)
    if found is None:
        yield re.sub(r"\s+as\s+\w+", "", tree).strip()
        return
    depth, begin, inside = 0, 0, found[2] + ","
    for at, character in enumerate(inside):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if character == "," and depth == 0:
            if inside[begin:at].strip():
                yield from alternatives(found[1].strip() + inside[begin:at].strip())
            begin = at + 1


def named(text: str) -> Iterator[str]:
    """The paths that a file names, but for those of the tests at its end."""
    text = re.sub(r"//[^\n]*", "", text)
    text = re.split(r"#\[cfg\((?:all\()?test[^\]]*\]\s*mod \w+ \{", text)[0]
    for use in re.findall(r"\buse\s+([^;]+);", text):
        yield from alternatives(use)
    yield from re.findall(r"\b(?:crate|super|self)(?:::\w+)+", re.sub(r"\buse\s+[^;]+;", "", text))


def imported(module: str, text: str, modules: Iterable[str]) -> set[str]:
    """The files that a file imports."""
    known, found = set(modules), set()
    for path in named(text):
        parts, base = path.split("::"), module.split("::")
        if parts[0] == "crate":
            parts = parts[1:]
        elif parts[0] in ("super", "self"):
            while parts and parts[0] == "super":
                parts, base = parts[1:], base[:-1]
            parts = [*base, *(part for part in parts if part != "self")]
        else:
            parts = [*base, *parts]  # a child of its own, or another crate, which no file has the name of
        while len(parts) > 1 and "::".join(parts) not in known:
            parts = parts[:-1]
        name = "::".join(parts)
        if name in known and name != module:
            found.add(name)
    return found


def upwards(module: str, names: Iterable[str]) -> list[str]:
    """Imports of a file that go to another room that is not below its own."""
    room = module.split("::")[0]
    return [
        f"{module} imports {name}: {room} may not know {name.split('::')[0]}"
        for name in sorted(names)
        if name.split("::")[0] != room and LEVEL[name.split("::")[0]] >= LEVEL[room]
    ]


def reached(graph: Mapping[str, set[str]], start: str) -> set[str]:
    """The files that a file imports, directly or through others."""
    found: set[str] = set()
    todo = [start]
    while todo:
        new = graph.get(todo.pop(), set()) - found
        found |= new
        todo += new
    return found


def circles(graph: Mapping[str, set[str]]) -> set[str]:
    """The files that import themselves through others; imports of a folder's own mod.rs do not count."""
    plain = {
        module: {name for name in names if not module.startswith(f"{name}::")}
        for module, names in graph.items()
    }
    return {module for module in plain if module in reached(plain, module)}


def engine() -> dict[str, set[str]]:
    """What each file of the engine imports."""
    files = [path for path in sorted(SOURCES.rglob("*.rs")) if "tests" not in path.with_suffix("").parts]
    texts = {module_of(path): path.read_text() for path in files}
    del texts[""]  # lib.rs, which names the rooms
    return {module: imported(module, text, texts) for module, text in texts.items()}


def test_rooms_of_the_engine_know_only_what_is_below_them() -> None:
    graph = engine()
    assert [each for module, names in graph.items() for each in upwards(module, names)] == []
    assert len(graph) > 100, "files were looked at"
    assert "processor::share" in graph["processor::messages"], "imports were found"


def test_files_of_the_engine_that_import_each_other_are_named() -> None:
    found = circles(engine())
    ring = {module for module in found if module in RING or module.startswith("processor::share::")}
    assert found == ring
    assert found >= RING, "what is no longer in a circle is not named"


def test_an_import_that_goes_upwards_is_noticed() -> None:
    known = ("change_log::space", "processor::share", "volume")
    text = (
        "use crate::{change_log::space::Space, volume::View};\nfn f() -> crate::processor::share::Share {}\n"
    )
    found = imported("processor::queue", text, known)
    assert found == set(known)
    assert upwards("processor::queue", found) == [
        "processor::queue imports volume: processor may not know volume"
    ]


def test_a_circle_is_noticed() -> None:
    files = {
        "nbd": "use reply::Reply;",
        "nbd::reply": "use super::peer::{self, Peer};\nuse crate::nbd::Server;",
        "nbd::peer": "use crate::nbd::who as other;",
        "nbd::who": "// use crate::nbd::reply;\n#[cfg(test)]\nmod tests {\n    use crate::nbd::reply;\n}",
    }
    graph = {module: imported(module, text, files) for module, text in files.items()}
    assert circles(graph) == set()
    files["nbd::who"] = "pub use super::{reply::Reply};"
    graph = {module: imported(module, text, files) for module, text in files.items()}
    assert circles(graph) == {"nbd::reply", "nbd::peer", "nbd::who"}
