"""What the command line prints: lines, tables and facts for people, JSON for programs.

How it works      Everything is printed by `say`. A character that is not printable (control characters,
                  escape sequences, bytes that are not UTF-8) is shown as its escape, so that no name can
                  control the terminal or look like another line. A table has one line for each row;
                  on a narrower terminal, a row takes several lines, which break only between cells. So a
                  printed name can always be copied.
Invariants        OU1 a cell is never empty, cut off or broken; OU2 JSON is ASCII; OU3 with --json nothing
                  else is written to the standard output.
Errors            OutputFailed; BrokenPipeError, which ends the program in silence (ending.py).
"""

import json
import shutil
import sys
from collections.abc import Sequence

import click

from polyvol.daemon.client.cli.client import Json
from polyvol.daemon.errors import OutputFailed
from polyvol.mapping.os_errors import advice, reason

_GAP = "  "
_INDENT = "    "


def visible(text: str) -> str:
    """The text, with each character that is not printable replaced by an escape."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _escape(each) for each in text)


def say(text: str, *, err: bool = False) -> None:
    """Print one line."""
    _write(visible(text), err=err)


def warn(text: str) -> None:
    """Print a warning on the standard error."""
    say(f"warning: {text}", err=True)


def say_lines(lines: Sequence[str], *, err: bool = False) -> None:
    """Print many lines that need no escaping."""
    if lines:
        _write("\n".join(lines), err=err)


def print_json(answer: Json, *, err: bool = False) -> None:
    """The API's answer, indented. `err`: on the standard error, where the standard output has data."""
    _write(json.dumps(answer, indent=2), err=err)


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]], *, err: bool = False) -> None:
    """Rows under a header; with no rows, the header alone. None is shown as '-'. `err` as in `print_json`."""
    table = [list(header), *map(_texts, rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = _columns_of_lines(widths)
    if len(lines) == 1:  # as most tables are, and those with many rows are printed sooner so
        form = _GAP.join(f"{{:<{width}}}" for width in widths).format
        say_lines([form(*row).rstrip() for row in table], err=err)
        return
    say_lines([line for row in table for line in _lines(row, lines, widths)], err=err)


def _texts(row: Sequence[object]) -> list[str]:
    """The cells of a row as texts; OU1."""
    texts = ["-" if cell is None or cell == "" else str(cell) for cell in row]
    return texts if "".join(texts).isprintable() else [visible(text) for text in texts]


def print_facts(facts: Sequence[tuple[str, object]]) -> None:
    """One fact a line, the values aligned; those that are None or empty are left out."""
    shown = [(name, value) for name, value in facts if value not in (None, "", [])]
    width = max(len(name) for name, _ in shown)
    for name, value in shown:
        say(f"{name + ':':<{width + 2}}{value}")


def listed(names: Sequence[object]) -> str:
    """Names with commas between them; '-' for none."""
    return ", ".join(str(name) for name in names) or "-"


def _columns_of_lines(widths: Sequence[int]) -> list[range]:
    """The columns on each line of a row: all on one, unless the terminal is too narrow."""
    if not sys.stdout.isatty():
        return [range(len(widths))]
    room = shutil.get_terminal_size().columns
    lines, begin, used = [], 0, 0
    for column, width in enumerate(widths):
        gap = 0 if column == begin else len(_GAP)
        if column > begin and used + gap + width > room:
            lines.append(range(begin, column))
            begin, used, gap = column, len(_INDENT), 0
        used += gap + width
    return [*lines, range(begin, len(widths))]


def _lines(row: Sequence[str], lines: Sequence[range], widths: Sequence[int]) -> list[str]:
    return [
        ("" if number == 0 else _INDENT)
        + _GAP.join(row[column].ljust(widths[column]) for column in columns).rstrip()
        for number, columns in enumerate(lines)
    ]


def _escape(character: str) -> str:
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:  # Python's form of a byte that is not UTF-8
        return f"\\x{number - 0xDC00:02x}"
    return repr(character)[1:-1]


def _write(text: str, *, err: bool) -> None:
    try:
        click.echo(text, err=err)
    except BrokenPipeError:
        raise
    except OSError as error:
        if not err:  # a closed standard error is ignored
            raise OutputFailed(why=reason(error), todo=advice(error)) from error
