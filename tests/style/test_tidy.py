"""test_tidy: the repository's rules that a program can check.

How it works   Each check is a pure function from text to complaints. One test runs it over every file that
               git knows or would add; another feeds it something bad, so that none rots into always passing.
Errors         A complaint names file and line, what is wrong, and what to do.
"""

import ast
import re
import subprocess
import tomllib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 60
OPENING_CHARACTERS_MIN = 15
PACKAGES = ("daemon", "mapping", "nbd_plugin", "snapshot")

# Started by name (console scripts, nbdkit), so nobody imports them.
ENTRY_POINTS = {"polyvol.daemon.main", "polyvol.daemon.client.cli.main", "polyvol.nbd_plugin.polyvol_plugin"}

# Which package may import which others; all may import themselves. `engine` is finer: see ENGINE_FORBIDDEN.
IMPORTS_ALLOWED = {
    "mapping": {"engine"},
    "snapshot": {"engine", "mapping"},
    "daemon": {"engine", "mapping", "nbd_plugin", "snapshot"},
    "nbd_plugin": {"daemon", "engine", "mapping"},
}
ENGINE_FORBIDDEN = ("polyvol.daemon.api", "polyvol.daemon.client")

# One concept, one name: the word that is not ours, and ours.
SYNONYMS = {
    r"shards?": "partition",
    r"vdisks?|virtual disks?": "volume",
    r"sub-?snapshots?": "partition snapshot",
    r"(delta|redo|diff|write-ahead|cow) logs?": "change log",
    r"backing (stores?|files?|devices?)": "device",
    r"(consistency|snapshot) points?": "cut",
}
GLOSSARY = ROOT / "docs" / "glossary.md"
"""Names the synonyms, so that a reader who knows only these finds ours."""
SYNONYM = re.compile(r"\b(?:" + "|".join(SYNONYMS) + r")\b", re.IGNORECASE)


def repository_files(*patterns: str) -> list[Path]:
    """Files that git has or would add, matching one of the patterns (of git, from the root)."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *patterns]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=30).stdout.decode()
    return sorted({ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()})


def texts(paths: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    """Files and what is in them. One that somebody has removed since it was listed is left out."""
    for path in paths:
        with suppress(FileNotFoundError):
            yield path, path.read_text()


def shell_scripts() -> list[Path]:
    """Shell sources by what they are, not by how they are called."""
    found = texts(repository_files("scripts/*", ".ci/*", "*.sh"))
    return [path for path, text in found if re.match(r"#!.*\b(ba)?sh\b", text) or path.suffix == ".sh"]


def sources() -> list[Path]:
    """Everything that a person writes as code."""
    return sorted({*repository_files("*.py", "*.pyi", "*.rs", "*.sql"), *shell_scripts()})


def where(path: Path) -> str:
    """A path as a reader types it."""
    return str(path.relative_to(ROOT))


# The checks.


def long_file(name: str, text: str) -> list[str]:
    """Complain of a file with more than FILE_LINES_MAX lines."""
    lines = text.count("\n")
    return [f"{name}: {lines} lines, at most {FILE_LINES_MAX}: split it"] if lines > FILE_LINES_MAX else []


@dataclass(frozen=True)
class Parsed:
    """What the checks ask of a Python text: its docstring; each function, with its first line and how many it
    has; each import (line, module, names, level; for `import a`, module None)."""

    opening: str
    functions: tuple[tuple[str, int, int], ...]
    imports: tuple[tuple[int, str | None, tuple[str, ...], int], ...]


@cache
def parsed(text: str) -> Parsed:
    """A Python text, which several checks ask about: it is parsed once."""
    tree = ast.parse(text)
    functions: list[tuple[str, int, int]] = []
    found: list[tuple[int, str | None, tuple[str, ...], int]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            functions.append((node.name, node.lineno, (node.end_lineno or node.lineno) - node.lineno + 1))
        elif isinstance(node, ast.Import):
            found.append((node.lineno, None, tuple(alias.name for alias in node.names), 0))
        elif isinstance(node, ast.ImportFrom):
            names = tuple(alias.name for alias in node.names)
            found.append((node.lineno, node.module or "", names, node.level))
    return Parsed(ast.get_docstring(tree) or "", tuple(functions), tuple(found))


def long_functions(name: str, text: str) -> list[str]:
    """Complain of Python functions over FUNCTION_LINES_MAX lines, from `def` to the last line."""
    return [
        f"{name}:{first}: {function} has {lines} lines, at most {FUNCTION_LINES_MAX}: split it"
        for function, first, lines in parsed(text).functions
        if lines > FUNCTION_LINES_MAX
    ]


def missing_opening(name: str, text: str) -> list[str]:
    """Complain of a source that does not begin by saying what it is for."""
    if name.endswith((".py", ".pyi")):
        opening = parsed(text).opening
    else:
        lines = text.splitlines()
        if lines and lines[0].startswith("#!") and not name.endswith(".rs"):
            lines = lines[1:]
        mark = {".rs": "//!", ".sql": "--"}.get(Path(name).suffix, "#")
        opening = lines[0].removeprefix(mark) if lines and lines[0].startswith(mark) else ""
    if len(opening.strip()) < OPENING_CHARACTERS_MIN:
        return [f"{name}:1: opens without a sentence on what it is for: write one"]
    return []


def unclosed_databases(name: str, text: str) -> list[str]:
    """Complain of a database that `with` does not close: of a connection it ends the transaction only."""
    if not name.endswith(".py") or "sqlite3.connect(" not in text:
        return []
    return [
        f"{name}:{node.lineno}: the connection stays open: write `with closing(sqlite3.connect(...))`"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.With)
        for item in node.items
        if ast.unparse(item.context_expr).startswith("sqlite3.connect(")
    ]


def synonyms(name: str, text: str) -> list[str]:
    """Complain of words for things that have another name here."""
    complaints = []
    for match in SYNONYM.finditer(text):
        ours = next(
            ours for theirs, ours in SYNONYMS.items() if re.fullmatch(theirs, match[0], re.IGNORECASE)
        )
        complaints.append(f"{name}:{line_of(text, match)}: says '{match[0]}', which here is '{ours}'")
    return complaints


def line_of(text: str, match: re.Match[str]) -> int:
    """The line on which a match begins, from 1."""
    return text.count("\n", 0, match.start()) + 1


def imports(module: str, text: str, *, is_package: bool = False) -> Iterator[tuple[int, str]]:
    """Each polyvol module that a text may import, with the line; `from a import b` gives a and a.b."""
    package = module if is_package else module.rpartition(".")[0]
    for line, base, given, level in parsed(text).imports:
        names: Iterable[str] = given
        if base is not None:
            if level:
                parents = package.split(".")
                base = ".".join(parents[: len(parents) - level + 1] + ([base] if base else []))
            names = [base, *(f"{base}.{each}" for each in given)]
        for name in names:
            if name.startswith("polyvol."):
                yield line, name


def forbidden_imports(module: str, text: str) -> list[str]:
    """Complain of imports that go upwards, or past the service to the engine."""
    package = module.split(".")[1]
    complaints = []
    for line, name in imports(module, text):
        target = name.split(".")[1]
        if target != package and target not in IMPORTS_ALLOWED[package]:
            complaints.append(f"{module}:{line}: imports {name}; {package} may not know {target}")
        if target == "engine" and (module.startswith(ENGINE_FORBIDDEN) or module.endswith("routes")):
            complaints.append(f"{module}:{line}: imports {name}; only the service talks to the engine")
    return complaints


def never_imported(modules: dict[str, str]) -> list[str]:
    """Complain of modules (name to text; packages end in `.__init__`) that no other module imports."""
    reached = set(ENTRY_POINTS)
    for module, text in modules.items():
        is_package = module.endswith(".__init__")
        own = module.removesuffix(".__init__")
        reached |= {name for _, name in imports(own, text, is_package=is_package) if name != own}
    plain = [module for module in modules if not module.endswith(".__init__")]
    return [
        f"{module}: no other module imports it: use it or remove it"
        for module in plain
        if module not in reached
    ]


def rust_files_left_out(files: dict[str, str]) -> list[str]:
    """Complain of Rust files (path below src to text) that no `mod` names: rustc never looks at them."""
    complaints = []
    for name in files:
        path = Path(name)
        if name in ("lib.rs", "main.rs"):
            continue
        own = path.parent if path.name == "mod.rs" else path.with_suffix("")
        parents = [own.parent / "mod.rs", own.parent / "lib.rs"]
        if own.parent != Path():
            parents.append(own.parent.with_suffix(".rs"))
        declares = re.compile(rf"^\s*(pub(\([a-z: ]+\))? )?mod {own.name};", re.MULTILINE)
        if not any(declares.search(files.get(str(parent), "")) for parent in parents):
            complaints.append(
                f"engine/src/{name}: no `mod {own.name};` in its parent: add it or remove the file"
            )
    return complaints


# An invariant has a tag, as in "Invariants  AB1 nothing is lost; AB2 ...". It is cited as "(AB1)", "// AB1"
# or, in a string, "AB1: ...".
TAG = r"[A-Z]{1,2}[1-9][0-9]?"
TAG_DEFINED = re.compile(rf"(?:^|[;.] )({TAG}) (?!(?:and|to) )")
TAG_CITED = re.compile(rf"\((?:its )?({TAG})[):,]|(?://|#) ({TAG})(?![A-Za-z0-9])|\"({TAG})[:\",]")


def invariants(text: str) -> list[str]:
    """Tags that the section "Invariants" in the head of a source defines."""
    inside, section = False, ""
    for line in text.splitlines():
        words = line.removeprefix("//!").removeprefix(" ")
        if not words.strip() or (text.startswith("//!") and not line.startswith("//!")):
            inside = False
        elif words[:1] != " ":
            inside = words.startswith("Invariants")
        if inside:
            section += words.removeprefix("Invariants").strip() + " "
    return TAG_DEFINED.findall(section)


def unclear_tags(files: dict[str, str]) -> list[str]:
    """Complain of tags of invariants that several heads define, or that are cited and defined nowhere."""
    defined: dict[str, str] = {}
    complaints = []
    for name, text in files.items():
        for tag in invariants(text):
            if tag in defined:
                complaints.append(f"{name}: defines {tag}, which {defined[tag]} defines: take another one")
            defined.setdefault(tag, name)
    for name, text in files.items():
        for number, line in enumerate(text.splitlines(), 1):
            cited = {tag for found in TAG_CITED.findall(line) for tag in found if tag}
            unknown = sorted(cited - {*defined})
            complaints += [f"{name}:{number}: cites {tag}, which no head defines" for tag in unknown]
    return complaints


def test_a_file_that_is_removed_meanwhile_is_left_out(tmp_path: Path) -> None:
    kept, gone = tmp_path / "kept", tmp_path / "gone"
    kept.write_text("x")
    assert list(texts([gone, kept])) == [(kept, "x")]


# The repository passes them.


def polyvol_modules() -> dict[str, str]:
    """Module name to text of everything that becomes part of the import package."""
    found = {}
    for path, text in texts(repository_files(*(f"{package}/**.py" for package in PACKAGES))):
        found[".".join(("polyvol", *path.relative_to(ROOT).with_suffix("").parts))] = text
    return found


@pytest.mark.parametrize("check", [long_file, missing_opening, unclosed_databases])
def test_sources_keep_the_rule(check: Callable[[str, str], list[str]]) -> None:
    found = [(path, text) for path, text in texts(sources()) if text or path.name != "__init__.py"]
    assert len(found) > 10
    assert [c for path, text in found for c in check(where(path), text)] == []


def test_python_functions_are_short() -> None:
    found = texts(repository_files("*.py"))
    assert [c for path, text in found for c in long_functions(where(path), text)] == []


def test_only_words_of_the_glossary() -> None:
    exempt = {Path(__file__).resolve(), GLOSSARY}
    paths = {*sources(), *repository_files("*.md")} - exempt
    assert [c for path, text in texts(sorted(paths)) for c in synonyms(where(path), text)] == []


def test_imports_go_downwards() -> None:
    modules = polyvol_modules()
    assert [c for module, text in modules.items() for c in forbidden_imports(module, text)] == []


def test_every_module_is_imported() -> None:
    assert never_imported(polyvol_modules()) == []


def test_every_rust_file_is_compiled() -> None:
    base = ROOT / "engine" / "src"
    files = {str(path.relative_to(base)): path.read_text() for path in repository_files("engine/src/**.rs")}
    assert rust_files_left_out(files) == []


def test_tags_of_invariants_are_unique() -> None:
    paths = repository_files("engine/src/**.rs", *(f"{package}/**.py" for package in PACKAGES))
    files = {where(path): text for path, text in texts(paths)}
    assert len({tag for text in files.values() for tag in invariants(text)}) > 100
    assert unclear_tags(files) == []


def test_every_package_is_distributed() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    inits = repository_files(*(f"{package}/**__init__.py" for package in PACKAGES))
    assert listed == {"polyvol", *(".".join(("polyvol", *p.relative_to(ROOT).parent.parts)) for p in inits)}


# Each check can fail.


def test_long_file_is_noticed() -> None:
    assert long_file("a.py", "x\n" * FILE_LINES_MAX) == []
    assert "a.py: 501 lines" in long_file("a.py", "x\n" * (FILE_LINES_MAX + 1))[0]


def test_long_function_is_noticed() -> None:
    fits = "def f():\n" + "    x = 1\n" * (FUNCTION_LINES_MAX - 1)
    assert long_functions("a.py", fits) == []
    assert "a.py:1: f has 61 lines" in long_functions("a.py", fits + "    x = 1\n")[0]


@pytest.mark.parametrize(
    ("name", "bad", "good"),
    [
        ("a.py", "import os\n", '"""a: what this file is good for."""\n'),
        ("a.rs", "use std::io;\n", "//! a: what this file is good for.\n"),
        ("a.sql", "CREATE TABLE t (x);\n", "-- a: what this file is good for.\n"),
        ("run", "#!/bin/sh\nset -e\n", "#!/bin/sh\n# run: what this script is good for.\n"),
        ("a.rs", "//! a\n", "//! a: what this file is good for.\n"),
    ],
)
def test_missing_opening_is_noticed(name: str, bad: str, good: str) -> None:
    assert missing_opening(name, bad) == [f"{name}:1: opens without a sentence on what it is for: write one"]
    assert missing_opening(name, good) == []


def test_unclosed_database_is_noticed() -> None:
    assert unclosed_databases("a.py", "with closing(sqlite3.connect(p)) as c:\n    c\n") == []
    assert "a.py:1: " in unclosed_databases("a.py", "with sqlite3.connect(p) as c:\n    c\n")[0]


@pytest.mark.parametrize("bad", ["two Shards", "a virtual disk", "the subsnapshot", "a write-ahead log"])
def test_synonym_is_noticed(bad: str) -> None:
    assert len(synonyms("a.md", f"one\n{bad}\n")) == 1
    assert synonyms("a.md", "a sharded_thing is another word, and a partition is ours\n") == []


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("polyvol.mapping.extent", "from polyvol.snapshot import coordinator\n"),
        ("polyvol.snapshot.coordinator", "import polyvol.daemon.errors\n"),
        ("polyvol.daemon.volumes.routes", "from polyvol import engine\nfrom polyvol.engine import Engine\n"),
        ("polyvol.mapping.catalog.store", "from ...daemon import errors\n"),
    ],
)
def test_upward_import_is_noticed(module: str, text: str) -> None:
    assert forbidden_imports(module, text) != []
    assert forbidden_imports("polyvol.daemon.service", "from polyvol.engine import Engine\n") == []


def test_unimported_module_is_noticed() -> None:
    modules = {
        "polyvol.mapping.__init__": "",
        "polyvol.mapping.a": "from . import b\n",
        "polyvol.mapping.b": "",
        "polyvol.daemon.main": "import polyvol.mapping.a\n",
        "polyvol.mapping.lonely": "",
    }
    assert never_imported(modules) == [
        "polyvol.mapping.lonely: no other module imports it: use it or remove it"
    ]


def test_left_out_rust_file_is_noticed() -> None:
    files = {
        "lib.rs": "pub mod nbd;\nmod units;\n",
        "units.rs": "",
        "nbd/mod.rs": "pub(crate) mod wire;\n#[cfg(test)]\nmod tests;\n",
        "nbd/wire.rs": "",
        "nbd/tests.rs": "",
        "nbd/forgotten.rs": "",
    }
    assert [complaint.split(":")[0] for complaint in rust_files_left_out(files)] == [
        "engine/src/nbd/forgotten.rs"
    ]


def test_unclear_tag_is_noticed() -> None:
    head = "//! A: a.\n//!\n//! Invariants        A1 one; A2 two\n//!                      of it; A3 three.\n"
    other = '"""b: b.\n\nInvariants   A2 another.\nErrors    none (A3).\n"""\nassert x, "A4: never"\n'
    assert invariants(head) == ["A1", "A2", "A3"]
    assert unclear_tags({"a.rs": head + "x(); // A2\n"}) == []
    assert unclear_tags({"a.rs": head, "b.py": other}) == [
        "b.py: defines A2, which a.rs defines: take another one",
        "b.py:6: cites A4, which no head defines",
    ]
