"""Options of log rules, processors and places, which several verbs have; log rules as people read them."""

from collections.abc import Callable
from typing import Any

import click

from polyvol.daemon.client.cli.common import Command
from polyvol.mapping.sizes import SIZE_MAX


class ProcessorsType(click.ParamType[int | list[int]]):
    """How many processors ('2'), or which ('0,2'; '2,' is number 2 alone)."""

    name = "processors"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | list[int]:
        """The number, or the list."""
        words = str(value).removesuffix(",").split(",")
        if not all(word.isascii() and word.isdigit() and int(word[:20]) <= SIZE_MAX for word in words):
            self.fail(f"{value!r} is neither a number of processors nor a list of their numbers: 2, or 0,2")
        return [int(word) for word in words] if "," in str(value) else int(words[0])


_RULE = (
    "A rule is DEVICE[+DEVICE...][+any], with P= before it for processor P, or A-B= for partitions A to B."
)


def log_devices_option(*, help: str) -> Callable[[Command], Command]:
    """--log-device, given to the command as `log_devices`."""
    return click.option("--log-device", "log_devices", multiple=True, metavar="RULE", help=f"{help} {_RULE}")


def processors_option(what: str = "") -> Callable[[Command], Command]:
    """--processors."""
    return click.option(
        "--processors",
        type=ProcessorsType(),
        metavar="N|P,P...",
        help=f"{what}How many processors own its partitions, or which [all].",
    )


def place_option(what: str = "") -> Callable[[Command], Command]:
    """--place."""
    return click.option(
        "--place",
        multiple=True,
        metavar="A-B:processor=P,device=DEVICE+DEVICE",
        help=f"{what}Where partitions A to B are, by either or both; repeatable.",
    )


def rules_text(rules: list[dict[str, Any]]) -> str:
    """Log rules in one line, as --log-device takes them."""
    return ",".join(rule["rule"] for rule in rules) or "any"
