"""test_cli: what holds for every command and every error, so that a new one cannot forget it.

How it works      The commands come from click's tree, the errors from the error table.
"""

import errno
import os
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from polyvol.daemon.errors import error_table
from polyvol.mapping.errors import PolyvolError
from polyvol.mapping.os_errors import advice, reason
from tests.style.test_docs import cli, commands

COMMANDS = dict(commands(cli()))
UNKIND = re.compile(r"Errno|Traceback|Exception|[a-z]Error\b|is well|system's log|sqlite|None\b")


def option(command: click.Command, name: str) -> click.Parameter | None:
    return next((each for each in command.params if name in each.opts), None)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_json_and_a_sentence_of_help(name: str) -> None:
    command = COMMANDS[name]
    assert option(command, "--json") is not None
    assert command.help
    for parameter in command.params:
        assert isinstance(parameter, click.Argument) or parameter.help, f"{name}: {parameter.name}"


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_that_can_be_given_again_says_so(name: str) -> None:
    for parameter in COMMANDS[name].params:
        if isinstance(parameter, click.Option):
            assert parameter.multiple == ("repeatable" in (parameter.help or "")), f"{name}: {parameter.name}"


@pytest.mark.parametrize("words", sorted({tuple(name.split()[1:-1]) for name in COMMANDS}))
def test_no_line_of_a_list_of_commands_is_cut_off(words: tuple[str, ...]) -> None:
    """On a terminal of 80 columns."""
    shown = CliRunner().invoke(cli(), [*words, "--help"], terminal_width=80).stdout
    assert "Commands:" in shown
    assert [line for line in shown.splitlines()[1:] if line.endswith("...")] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_looks_at_paths_before_it_runs(name: str) -> None:
    """click.Path refuses what cannot be read as a usage error, which helps nobody."""
    assert [each.name for each in COMMANDS[name].params if isinstance(each.type, click.Path)] == []


def test_only_one_place_prints() -> None:
    """Names from anywhere go through `say`, which shows control characters as escapes."""
    folder = Path(__file__).resolve().parents[2] / "daemon" / "client" / "cli"
    printing = [
        path.name
        for path in sorted(folder.glob("*.py"))
        if re.search(r"click\.(echo|secho)|(?<![\w.])print\(|sys\.(stdout|stderr)\.write", path.read_text())
    ]
    assert printing == ["client.py", "ending.py", "output.py"]


@pytest.mark.parametrize("error", error_table(), ids=lambda error: error.__name__)
def test_no_error_has_words_of_python(error: type[PolyvolError]) -> None:
    assert not UNKIND.search(error.sentence)
    assert not UNKIND.search(error.hint)


@pytest.mark.parametrize("number", sorted(errno.errorcode), ids=lambda number: errno.errorcode[number])
def test_every_errno_has_a_reason_and_advice(number: int) -> None:
    error = OSError(number, os.strerror(number), "/nonexistent/file")
    assert reason(error)
    assert not UNKIND.search(reason(error))
    assert not reason(error)[:2].istitle()
    assert advice(error)
