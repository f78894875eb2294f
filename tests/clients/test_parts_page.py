"""test_parts_page: the walk of docs/parts.md, as it is written: each command is run on a real daemon, and
what it prints is compared with the page.

How it works      The lines after `$` are commands, those after them what they print. Times, durations and
                  UUIDs are not compared, nor is how wide the columns are.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from tests.support.daemon import Daemon
from tests.support.proc import check

PAGE = Path(__file__).resolve().parents[2] / "docs" / "parts.md"
_BLOCK = re.compile(r"^```\n(.*?)^```", re.MULTILINE | re.DOTALL)
_CHANGES = (
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d(:\d\d)?"), "TIME"),
    (re.compile(r"\b[\d.]+ (ns|us|ms|s)\b"), "DURATION"),
    (re.compile(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"), "UUID"),
    (
        re.compile(r"(?m)^(parts of requests|run by its thread|run by readers|batches|slow I/O|queued):.*"),
        r"\1",
    ),
    (re.compile(r" {2,}"), "  "),
)
"""What differs from one run to the next, and what stands for it."""


def walk(text: str) -> Iterator[tuple[str, str]]:
    """The commands of a page, each with what it prints."""
    for block in _BLOCK.findall(text):
        command, printed = "", list[str]()
        for line in [*block.splitlines(), "$ "]:
            if line.startswith("$ "):
                if command:
                    yield command, "\n".join(printed).strip()
                command, printed = line[2:], []
            else:
                printed.append(line.rstrip())


def alike(text: str) -> str:
    """A text without what differs from one run to the next."""
    for pattern, name in _CHANGES:
        text = pattern.sub(name, text)
    return text


def run(daemon: Daemon, command: str) -> str:
    """Run a command of the page; what it prints."""
    words = shlex.split(command.replace("/var/lib/polyvol/nbd.sock", str(daemon.nbd_socket)))
    return daemon.ok(*words[1:]) if words[0] == "polyvol" else check(*words)


def test_the_walk_prints_what_the_page_says(daemon: Daemon) -> None:
    found = list(walk(PAGE.read_text()))
    assert len(found) > 10
    for command, printed in found:
        assert alike(run(daemon, command).strip()) == alike(printed), command


def test_a_page_that_says_something_else_is_noticed() -> None:
    assert list(walk("x\n```\n$ polyvol a\nB  1 ms\n$ polyvol c\n```\n")) == [
        ("polyvol a", "B  1 ms"),
        ("polyvol c", ""),
    ]
    assert alike("B    1 ms") == alike("B  23.5 us") != alike("C  1 ms")
