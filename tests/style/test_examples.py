"""test_examples: every command has examples in its help, and the command line accepts each of them.

How it works      An example is parsed as `main` would parse it, down to its verb, which must be the one that
                  it belongs to. Then it is run on a state directory that does not exist: it must fail because
                  there is no polyvold, and not as wrong usage.
"""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import pytest

from polyvol.daemon.client.cli.examples import EXAMPLES
from polyvol.daemon.client.cli.tree import ALIASES, Noun
from polyvol.daemon.errors import EXIT_USAGE
from polyvol.daemon.main import cli as polyvold
from tests.style.test_docs import cli, commands

COMMANDS = dict(commands(cli()))
ALL = [(name, example) for name, examples in EXAMPLES.items() for example in examples]
ALONE = (
    "polyvold",
    "polyvol",
    "polyvol attach",
    "polyvol detach",
    "polyvol in-use",
    "polyvol support-bundle",
)
"""Those that do something without a polyvold: only parsed."""


def calls(example: str) -> Iterator[list[str]]:
    """The words of each call of ours in a line of a shell."""
    for part in example.split("|"):
        words = shlex.split(part)
        if any(word in ("polyvol", "polyvold") for word in words):
            yield words[next(i for i, word in enumerate(words) if word in ("polyvol", "polyvold")) :]


def parsed(words: Sequence[str]) -> click.Context:
    """Parse a call; its verb's context. click.UsageError if it is not right."""
    command: click.Command = polyvold if words[0] == "polyvold" else cli()
    context = command.make_context(words[0], list(words[1:]))
    while isinstance(command, click.Group):
        name, found, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert found is not None
        command, context = found, found.make_context(name, rest, parent=context)
    return context


def test_every_command_has_examples() -> None:
    assert [name for name in COMMANDS if not EXAMPLES.get(name)] == []
    assert set(EXAMPLES) <= {*COMMANDS, "polyvol", "polyvold"}


@pytest.mark.parametrize(("name", "example"), ALL, ids=[example for _, example in ALL])
def test_an_example_is_what_the_command_line_accepts(name: str, example: str) -> None:
    found = [parsed(words).command_path for words in calls(example)]
    assert found
    assert name == "polyvol" or name in found
    assert len(example) <= 96


@pytest.mark.parametrize(
    ("name", "example"), [each for each in ALL if each[0] not in ALONE], ids=lambda each: str(each)
)
def test_an_example_is_no_wrong_usage(
    name: str,
    example: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("POLYVOL_STATE", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    for words in calls(example):
        with pytest.raises(SystemExit) as left:
            cli()(words[1:], prog_name="polyvol")
        assert left.value.code not in (0, EXIT_USAGE), capsys.readouterr().err


@pytest.mark.parametrize("bad", ["polyvol volume list --jsn", "polyvol volume lists", "polyvold --port 3"])
def test_a_wrong_example_is_noticed(bad: str) -> None:
    with pytest.raises(click.UsageError):
        parsed(next(calls(bad)))


def nouns(group: click.Group, name: str = "polyvol") -> Iterator[tuple[str, click.Group]]:
    for word, command in group.commands.items():
        if isinstance(command, click.Group):
            yield f"{name} {word}", command
            yield from nouns(command, f"{name} {word}")


def test_every_noun_has_the_aliases_and_shows_them() -> None:
    found = dict(nouns(cli()))
    assert len(found) > 5
    for name, noun in found.items():
        assert isinstance(noun, Noun), name
        for alias, verbs in ALIASES.items():
            verb = next((each for each in verbs if each in noun.commands), None)
            context = click.Context(noun, info_name=name)
            reached = noun.get_command(context, alias)
            assert reached is (None if verb is None else noun.commands[verb])
            if verb is not None:
                assert f"  {verb}, {alias} " in noun.get_help(context)
