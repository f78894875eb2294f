"""conftest: the fixtures that all tests share, and what scripts/test adds to pytest's summary.

How it works      `daemon` is a running polyvold for one test, `make_daemon` makes one with other arguments.
                  The style and unit tests need neither. Where scripts/test ran, its stages are told before
                  the last line, so that a failed stage cannot hide behind a green pytest. Tests that are
                  marked `alone` wait until no other runs, those marked `few` until one other does, and the
                  others wait for them (support/turns.py). Those of one file that are `alone` have one turn.
"""

import os
import signal
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.daemon import Daemon, short_directory
from tests.support.turns import Beside, turn

STAGES = "POLYVOL_TEST_STAGES"


def pytest_configure() -> None:
    """Programs that tests start can be ended by SIGINT and SIGQUIT, also where the shell has this run in the
    background and ignores them."""
    for number in (signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


FIRST = ("host", "crash", "torture", "engine", "clients")
"""Directories whose files take long, in the order in which they begin: a long one that began late would
be the last. Tests that are alone come after all: they wait for those that run, and others wait for them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files into the order in which they take the least time side by side."""
    waiting = {item.path for item in items if beside(item) == "alone"}

    def rank(item: pytest.Item) -> int:
        directory = item.path.parent.name
        if item.path in waiting:
            return len(FIRST) + 1
        return FIRST.index(directory) if directory in FIRST else len(FIRST)

    items.sort(key=rank)


_held: list[ExitStack] = []
"""The turn of the test that runs."""


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, object, object]:
    """Wait for this test's turn, before its time begins to count."""
    count = os.environ.get("PYTEST_XDIST_WORKER_COUNT")
    if count is None:
        return (yield)
    if not _held:
        directory = item.config.rootpath / "build" / "turns"
        with ExitStack() as stack:
            stack.enter_context(turn(directory, places=int(count), beside=beside(item)))
            _held.append(stack.pop_all())
    try:
        return (yield)
    finally:
        if not shares_turn(item, nextitem):
            _held.pop().close()


def shares_turn(item: pytest.Item, following: pytest.Item | None) -> bool:
    """Whether the next test keeps the turn of this one: a test that is alone waits until all others have
    ended, so those of one file wait once."""
    if following is None or following.path != item.path:
        return False
    return beside(item) == beside(following) == "alone"


def beside(item: pytest.Item) -> Beside:
    """Who may run beside a test."""
    marks: tuple[Beside, Beside] = ("alone", "few")
    return next((mark for mark in marks if item.get_closest_marker(mark) is not None), "others")


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A directory with a path short enough for unix sockets."""
    with short_directory() as path:
        yield path


@pytest.fixture
def make_daemon() -> Iterator[Callable[..., Daemon]]:
    """Start a polyvold with further arguments, on a state directory of its own."""
    with ExitStack() as stack:

        def make(*arguments: str, env: Mapping[str, str] | None = None) -> Daemon:
            directory = stack.enter_context(short_directory())
            return stack.enter_context(Daemon(directory, *arguments, env=env))

        yield make


@pytest.fixture
def daemon(make_daemon: Callable[..., Daemon]) -> Daemon:
    """A running polyvold without volumes."""
    return make_daemon()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell the other stages of scripts/test."""
    path = os.environ.get(STAGES)
    if path and Path(path).is_file():
        terminalreporter.section("stages before pytest")
        for line in Path(path).read_text().splitlines():
            terminalreporter.write_line(line, red="FAILED" in line)
