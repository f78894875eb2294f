"""test_docs: what the documentation says exists, and what exists is in the documentation.

How it works      The commands come from click's own tree, the errors from the subclasses of PolyvolError,
                  the API's paths from its routes. Each has to be in README.md or below
                  docs/; the other way round, every command in a code block has to exist with its options,
                  and every link has to lead somewhere. Each check is a pure function, and has a test that
                  it can fail.
Errors            A complaint names what is missing, and where.
"""

import importlib
import os
import pkgutil
import re
import shlex
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
import pytest

from polyvol.daemon.api.application import ROUTES
from tests.style.test_tidy import ROOT, repository_files
from tests.support.proc import check

CODE_BLOCK = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^ {4,}\S[^\n]*\n)+", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)]*)?\)")
OPTION = re.compile(r"--[a-z][a-z-]*")
SOURCE = re.compile(r"`([\w./-]+\.(?:rs|py|pyi|c|sql))`")
BRACKETS = re.compile(r"[\[\]]|\.\.\.")


def pages() -> dict[str, str]:
    """README.md, CONTRIBUTING.md and everything below docs/, by path."""
    found = repository_files("README.md", "CONTRIBUTING.md", "docs/*.md")
    return {str(path.relative_to(ROOT)): path.read_text() for path in found}


def every_module(package: str) -> Iterator[str]:
    """The names of all modules of a package, imported."""
    root = importlib.import_module(package)
    yield package
    for found in pkgutil.walk_packages(root.__path__, f"{package}."):
        importlib.import_module(found.name)
        yield found.name


def cli() -> click.Group:
    """The root of `polyvol`'s commands."""
    module = importlib.import_module("polyvol.daemon.client.cli.commands")
    groups = [value for value in vars(module).values() if isinstance(value, click.Group)]
    below = {id(command) for group in groups for command in group.commands.values()}
    (root,) = {id(group): group for group in groups if id(group) not in below}.values()
    return root


def commands(group: click.Group, name: str = "polyvol") -> Iterator[tuple[str, click.Command]]:
    """All commands below a group that do something, with the words that call them."""
    for word, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{name} {word}")
        else:
            yield f"{name} {word}", command


def options(command: click.Command) -> set[str]:
    """The long options of a command."""
    return {name for parameter in command.params for name in parameter.opts if name.startswith("--")}


# The checks.


def undocumented(wanted: Iterable[str], text: str) -> list[str]:
    """Which of these words the text does not have, as whole words."""
    return [word for word in wanted if not re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text)]


def broken_links(page: str, text: str) -> list[str]:
    """Relative links of a page that lead nowhere."""
    targets = [match[1] for match in LINK.finditer(text) if "://" not in match[1]]
    return [
        f"{page}: {target}"
        for target in targets
        if not Path(os.path.normpath(ROOT / Path(page).parent / target)).exists()
    ]


def missing_sources(page: str, text: str, files: Iterable[str]) -> list[str]:
    """Sources that a page names, as a path or the end of one, and that are not there."""
    known = {
        "/" + "/".join(parts[at:]) for parts in (f.split("/") for f in files) for at in range(len(parts))
    }
    return [f"{page}: {name}" for name in sorted(set(SOURCE.findall(text))) if f"/{name}" not in known]


def code_lines(text: str) -> Iterator[str]:
    """The lines of a page's code blocks, continued lines joined, comments and prompts removed."""
    for block in [*CODE_BLOCK.findall(text), *INDENTED.findall(text)]:
        for line in block.replace("\\\n", " ").splitlines():
            yield line.strip().removeprefix("$ ").removeprefix("# ").strip()


def missing_scripts(page: str, text: str) -> list[str]:
    """Scripts that a page's code blocks call and that are not there to be run."""
    named = {name for line in code_lines(text) for name in re.findall(r"(?<![\w/.])scripts/[\w.-]+", line)}
    return [f"{page}: {name}" for name in sorted(named) if not os.access(ROOT / name, os.X_OK)]


def missing_tests(page: str, text: str) -> list[str]:
    """Tests that a page's code blocks run by a name (-k, --test) and that are not there."""
    complaints = []
    for line in code_lines(text):
        file, word = re.search(r"pytest (?:-- )?(tests/\S+\.py)", line), re.search(r" -k (\w+)", line)
        if file and word and not re.search(rf"def test_\w*{word[1]}", (ROOT / file[1]).read_text()):
            complaints.append(f"{page}: {file[1]} has no test with {word[1]} in its name")
        for program, module in re.findall(r"cargo test .*--test (\w+)(?: (\w+)::)?", line):
            name = module or ("main" if program == "engine" else program)
            if not (ROOT / "engine" / "tests" / f"{name}.rs").exists():
                complaints.append(f"{page}: engine/tests/{name}.rs")
    return complaints


def unknown_commands(page: str, text: str, group: click.Group) -> list[str]:
    """Calls of `polyvol` in a page's code blocks that the CLI would refuse: unknown words or options."""
    complaints = []
    for line in code_lines(text):
        found = re.match(r"(?:sudo )?(?:scripts/)?polyvol (?!\d)(.*)", line)
        if not found:
            continue
        words = shlex.split(BRACKETS.sub(" ", found[1]), comments=True)
        command: click.Command = group
        for word in [word for word in words if not word.startswith("-")]:
            if isinstance(command, click.Group):
                command = command.commands.get(word, click.Command("nothing"))
        known = options(command) | options(group) | {"--help", "--version"}
        unknown = [option for word in words for option in OPTION.findall(word)[:1] if option not in known]
        if command.name == "nothing" or unknown:
            complaints.append(f"{page}: {line}: {', '.join(unknown) or 'no such command'}")
    return complaints


def mutants_without_row(source: str, page: str) -> list[str]:
    """The mutants of mutants.rs that have no row of their own in a page's table."""
    return [
        name
        for name in re.findall(r"^    Bug::(\w+),$", source, re.MULTILINE)
        if f"\n| `{name}` |" not in page
    ]


# The documentation passes them.


def test_every_command_and_option_is_documented() -> None:
    text = "\n".join(pages().values())
    found = dict(commands(cli()))
    assert len(found) > 10
    assert undocumented(found, text) == []
    assert [
        f"{n} {o}" for n, command in found.items() for o in undocumented(sorted(options(command)), text)
    ] == []


def test_every_option_of_the_daemon_is_documented() -> None:
    told = set(OPTION.findall(check(Path(sys.executable).parent / "polyvold", "--help")))
    assert "--state-dir" in told
    assert undocumented(sorted(told - {"--help"}), "\n".join(pages().values())) == []


def test_every_error_is_documented_and_has_a_code_of_its_own() -> None:
    for package in ("polyvol.mapping", "polyvol.snapshot", "polyvol.daemon"):
        list(every_module(package))
    base = importlib.import_module("polyvol.mapping.errors").PolyvolError
    codes: dict[str, list[str]] = {}
    waiting = [base]
    while waiting:
        for error in waiting.pop().__subclasses__():
            waiting.append(error)
            codes.setdefault(error.code, []).append(error.__name__)
    assert len(codes) > 10
    assert {code: names for code, names in codes.items() if code and len(names) > 1} == {}
    assert undocumented([code for code in codes if code], pages()["docs/errors.md"]) == []


def test_every_path_of_the_api_is_documented() -> None:
    paths = {f"`{route.path}`" for route in ROUTES}
    assert len(paths) > 20
    assert [path for path in sorted(paths) if path not in pages()["docs/api.md"]] == []


def test_every_mutant_is_documented() -> None:
    source = (ROOT / "engine" / "src" / "mutants.rs").read_text()
    assert mutants_without_row(source, "") != []
    assert mutants_without_row(source, pages()["docs/decisions/0011-the-simulator.md"]) == []


def test_links_lead_somewhere() -> None:
    assert [complaint for page, text in pages().items() for complaint in broken_links(page, text)] == []


def test_sources_that_pages_name_are_there() -> None:
    files = [str(path.relative_to(ROOT)) for path in repository_files("*")]
    texts = pages() | {"tests/README.md": (ROOT / "tests" / "README.md").read_text()}
    assert [each for page, text in texts.items() for each in missing_sources(page, text, files)] == []


def test_commands_in_code_blocks_exist() -> None:
    group = cli()
    found = pages().items()
    assert [complaint for page, text in found for complaint in missing_scripts(page, text)] == []
    assert [complaint for page, text in found for complaint in unknown_commands(page, text, group)] == []
    texts = pages() | {"tests/README.md": (ROOT / "tests" / "README.md").read_text()}
    assert [complaint for page, text in texts.items() for complaint in missing_tests(page, text)] == []


# Each check can fail.


@pytest.fixture
def small_cli() -> click.Group:
    volume = click.Group("volume", commands=[click.Command("list", params=[click.Option(["--json"])])])
    return click.Group("polyvol", commands=[volume])


def test_missing_word_is_noticed() -> None:
    assert undocumented(["--size", "--size-max", "unknown-volume"], "`--size` and `--size-maximum`") == [
        "--size-max",
        "unknown-volume",
    ]


def test_broken_link_is_noticed() -> None:
    text = "[a](../README.md#x) [b](nowhere.md) [c](https://example.org/x)"
    assert broken_links("docs/a.md", text) == ["docs/a.md: nowhere.md"]


def test_missing_source_is_noticed() -> None:
    text = "`a/b.rs`, `b.rs`, `tests/a/b.rs`; `c.rs` and `x/b.rs` are gone"
    assert missing_sources("p.md", text, ["tests/a/b.rs"]) == ["p.md: c.rs", "p.md: x/b.rs"]


def test_missing_mutant_is_noticed() -> None:
    source = "pub const ALL: [Bug; 2] = [\n    Bug::NoSync,\n    Bug::NoSyncEver,\n];\n"
    assert mutants_without_row(source, "\n| `NoSyncEver` | a sync |") == ["NoSync"]


def test_missing_script_is_noticed() -> None:
    text = "scripts/not-in-a-block\n```\n$ scripts/run --x\nscripts/nothing \\\n  --y\n```\n"
    assert missing_scripts("a.md", text) == ["a.md: scripts/nothing"]


def test_missing_test_is_noticed() -> None:
    text = "    pytest tests/style/test_docs.py -x -k {}\n    cargo test --locked --test {}\n"
    for program in ("simulator", "engine rollbacks::", "engine"):
        assert missing_tests("a.md", text.format("missing_test", program)) == []
    for program in ("nothing", "engine nothing::"):
        assert len(missing_tests("a.md", text.format("no" + "thing_of_it", program))) == 2


@pytest.mark.parametrize("bad", ["volume lists", "volume list --jsn", "volumes", "--jso volume list"])
def test_unknown_command_is_noticed(bad: str, small_cli: click.Group) -> None:
    assert len(unknown_commands("a.md", f"```\nscripts/polyvol {bad}\n```\n", small_cli)) == 1
    assert len(unknown_commands("a.md", f"one:\n\n    polyvol {bad}\n", small_cli)) == 1
    assert unknown_commands("a.md", "```\npolyvol volume list [--json] # all\n```\n", small_cli) == []


def test_commands_are_found_with_their_options(small_cli: click.Group) -> None:
    assert {name: options(command) for name, command in commands(small_cli)} == {
        "polyvol volume list": {"--json"}
    }
