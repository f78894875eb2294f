"""What the command line prints: tables by rich on a terminal, else plain columns; JSON as it came.

Nothing is ever cut off: a name that is printed can be used as it stands.
"""

import json
import sys
from collections.abc import Sequence

import click

from polyvol.daemon.cli.client import Json


def print_json(answer: Json) -> None:
    """The API's answer, indented."""
    click.echo(json.dumps(answer, indent=2))


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Rows under a header; with no rows, the header alone."""
    texts = [[str(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _print_rich(header, texts)
        return
    widths = [max(len(row[column]) for row in [list(header), *texts]) for column in range(len(header))]
    for row in [list(header), *texts]:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo(line.rstrip())


def print_facts(facts: Sequence[tuple[str, object]]) -> None:
    """One fact a line, the values aligned; those that are None or empty are left out."""
    shown = [(name, value) for name, value in facts if value not in (None, "", [])]
    width = max(len(name) for name, _ in shown)
    for name, value in shown:
        click.echo(f"{name + ':':<{width + 2}}{value}")


def counted(count: int, noun: str) -> str:
    """'1 partition', '2 partitions'."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def in_future(moment: str, future: bool) -> str:
    """A moment; marked if it lies in the future of the clock."""
    return f"{moment} (in the future)" if future else moment


def listed(names: Sequence[object]) -> str:
    """Names with commas between them; '-' for none."""
    return ", ".join(str(name) for name in names) or "-"


def _print_rich(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in header:
        table.add_column(name, overflow="fold", no_wrap=False)
    for row in rows:
        table.add_row(*row)
    Console(soft_wrap=False, highlight=False, markup=False).print(table)
