"""The error table: codes unique, sentences whole, all in docs/errors.md, every raise with its facts."""

import ast
import string
from collections.abc import Iterator
from pathlib import Path

import pytest

import polyvol.daemon.errors
from polyvol.daemon.errors import HTTP_STATUS, error_table
from polyvol.mapping.errors import PolyvolError

ROOT = Path(__file__).resolve().parents[3]
TABLE = {error.__name__: error for error in error_table()}
OWN_FORM = {"CutFailed", "DeviceIo", "EngineFailed", "TransferFailed"}
"""These make some of their facts themselves."""


def fields(error: type[PolyvolError]) -> set[str]:
    templates = string.Formatter().parse(error.sentence), string.Formatter().parse(error.hint)
    return {name for template in templates for _, name, _, _ in template if name}


def raises() -> Iterator[tuple[str, int, str, set[str], bool]]:
    for folder in ("daemon", "mapping", "snapshot"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in TABLE:
                    given = {word.arg for word in node.keywords if word.arg}
                    spread = any(word.arg is None for word in node.keywords)
                    yield path.name, node.lineno, node.func.id, given, spread


def test_codes_are_unique_and_kinds_have_a_status() -> None:
    codes = [error.code for error in TABLE.values()]
    assert len(codes) == len(set(codes))
    assert all(code and error.kind in HTTP_STATUS for code, error in zip(codes, TABLE.values(), strict=True))


def test_every_error_is_raised_with_the_facts_of_its_sentence() -> None:
    raised = set()
    for file, line, name, given, spread in raises():
        raised.add(name)
        wanted = fields(TABLE[name])
        if name in OWN_FORM:
            continue
        assert given <= wanted if spread else given == wanted, f"{file}:{line} {name}"
    assert raised == set(TABLE), "an error that nobody raises"


@pytest.mark.parametrize("error", TABLE.values(), ids=TABLE)
def test_a_sentence_says_what_to_do(error: type[PolyvolError]) -> None:
    assert error.__doc__
    assert error.sentence
    assert error.hint
    assert not error.sentence.endswith(".")
    assert not error.hint.endswith(".")


@pytest.mark.parametrize("error", TABLE.values(), ids=TABLE)
def test_a_sentence_has_sizes_as_tables_have_them(error: type[PolyvolError]) -> None:
    assert "bytes" not in error.sentence + error.hint
    assert set(error.sizes) <= fields(error)


def test_the_errors_page_lists_every_error() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| `")]
    listed = {row[1].strip(" `"): (int(row[2]), row[3].strip(), row[4].strip()) for row in rows}
    assert listed == {
        error.code: (
            HTTP_STATUS[error.kind],
            polyvol.daemon.errors.shown(error.sentence),
            polyvol.daemon.errors.shown(error.hint),
        )
        for error in TABLE.values()
    }
