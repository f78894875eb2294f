"""test_cli_options: an option before the noun or before the verb means the same as after the verb.

How it works      Each command's first example is parsed, with each option at each of these places; what the
                  verb gets is compared.
"""

from pathlib import Path

import click
import pytest

from polyvol.daemon.client.cli import times
from polyvol.daemon.client.cli.examples import EXAMPLES
from polyvol.daemon.client.cli.tree import common_options
from polyvol.daemon.state.directory import DEFAULT_STATE_DIR
from tests.style.test_docs import cli, commands
from tests.style.test_examples import calls, parsed

COMMANDS = dict(commands(cli()))
VALUES = {"--state-dir": ["/one"], "--json": [], "--local": []}
CASES = [
    (name, option, place)
    for name, command in COMMANDS.items()
    for option in VALUES
    if any(option in each.opts for each in command.params)
    for place in range(1, len(name.split()) + 1)
]


def words_of(name: str) -> list[str]:
    """The first example of a command, without the options that are tried here."""
    words = next(calls(EXAMPLES[name][0]))
    while "--state-dir" in words:
        at = words.index("--state-dir")
        del words[at : at + 2]
    return [word for word in words if word not in VALUES]


def value(context: click.Context, option: str) -> object:
    """What the verb gets of an option."""
    if option == "--local":
        with context:
            return times._is_local()
    return context.params["state_dir" if option == "--state-dir" else "as_json"]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POLYVOL_STATE", raising=False)


def test_the_common_options_are_these() -> None:
    assert {each.opts[0] for each in common_options(hidden=False)} == set(VALUES)
    assert len(CASES) > 200


@pytest.mark.parametrize(("name", "option", "place"), CASES)
def test_an_option_means_the_same_at_each_place(name: str, option: str, place: int) -> None:
    words = words_of(name)
    before = value(parsed(words), option)
    words[place:place] = [option, *VALUES[option]]
    after = value(parsed(words), option)
    assert (before, after) == (
        (Path(DEFAULT_STATE_DIR), Path("/one")) if option == "--state-dir" else (False, True)
    )


@pytest.mark.parametrize("name", [name for name, option, _ in CASES if option == "--state-dir"])
def test_of_two_state_directories_the_last_one_counts(name: str) -> None:
    words = words_of(name)
    depth = len(name.split())
    for at, first in ((depth, 1), (depth - 1, 1), (depth, depth - 1)):
        both = list(words)
        both[at:at] = ["--state-dir", "/last"]
        both[first:first] = ["--state-dir", "/first"]
        assert value(parsed(both), "--state-dir") == Path("/last"), both


def test_the_environment_gives_way_to_an_option_before_the_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYVOL_STATE", "/environment")
    assert parsed(["polyvol", "volume", "list"]).params["state_dir"] == Path("/environment")
    assert parsed(["polyvol", "--state-dir", "/one", "volume", "list"]).params["state_dir"] == Path("/one")


@pytest.mark.parametrize(
    "words", ["polyvol --state-dir /one detach v", "polyvol --local volume list", "polyvol volume --local ls"]
)
def test_an_option_before_a_verb_without_it_is_refused(words: str) -> None:
    with pytest.raises(click.UsageError, match="has no option"):
        parsed(words.split())
