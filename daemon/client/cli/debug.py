"""polyvol debug: processors, dump: what polyvold is doing, to find what is stuck."""

import json
from collections.abc import Iterator
from pathlib import Path

import click

from polyvol.daemon.client.cli.client import Client, Json
from polyvol.daemon.client.cli.common import PATH, json_option, state_dir_option
from polyvol.daemon.client.cli.output import print_json, print_table, say, warn
from polyvol.daemon.client.cli.tree import Noun
from polyvol.daemon.client.transfer.file import OUTPUT, file_errors, new_file_or_output

_COUNTED = ("QUEUED", "WAITING", "HELD", "STARVED", "RESERVED", "POOL", "RING")
_HEADER = ("PROC", "STATE", "VOLUME", *_COUNTED, "OLDEST")


@click.group(cls=Noun)
def debug() -> None:
    """Show what polyvold is doing, to find what is stuck."""


@debug.command()
@json_option
@state_dir_option
def processors(as_json: bool, state_dir: Path) -> None:
    """Show what each processor is at, and what waits in it.

    One line for each volume on each processor: parts of requests that wait (QUEUED in the processor's queue,
    WAITING for their turn or for others, HELD by a cut, STARVED of free slots), that are in flight (RESERVED:
    with their blocks reserved; POOL: threads have them, or will; RING: the kernel has them), and how old the
    oldest is. A processor that does not answer is shown too.
    """
    shown = Client(state_dir).get("debug", "processors")
    if as_json:
        print_json(shown)
        return
    print_table(
        _HEADER,
        [row for processor in shown["processors"] for row in _rows(processor)],
    )
    in_flight = [row for processor in shown["processors"] for row in _in_flight(processor)]
    if in_flight:
        say("")
        print_table(("PROC", "VOLUME", "IN FLIGHT", "PLACE", "COUNT", "OLDEST"), in_flight)
    for sentence in _sentences(shown):
        say("")
        say(sentence)


@debug.command()
@click.argument("file", type=PATH, metavar="FILE|-")
@json_option
@state_dir_option
def dump(file: Path, as_json: bool, state_dir: Path) -> None:
    """Write all that can be seen of polyvold to a file.

    FILE is JSON, and readable by its owner alone. It has names, paths and what threads are at, and nothing of
    what is stored on volumes. It is not overwritten. -: the standard output.
    """
    with new_file_or_output(file, "a dump") as new:
        found = Client(state_dir).get("debug", "dump")
        with file_errors(new.partial), open(new.fd, "w", encoding="ascii", closefd=False) as output:
            json.dump(found, output, indent=1)
            output.write("\n")
    for problem in found["problems"]:
        warn(problem)
    if as_json:
        print_json({"path": str(file), "problems": found["problems"]}, err=file == OUTPUT)
    elif file != OUTPUT:
        say(f"{file} written")


def _rows(processor: Json) -> Iterator[tuple[object, ...]]:
    number, state = processor["processor"], _state(processor)
    if not processor["shares"]:
        queued = processor["queued_parts"]
        yield (number, state, None, queued["count"], *[None] * 6, _age(queued["oldest_ms"]))
    known = processor["shares_ms"] is not None
    for share in processor["shares"]:
        backlog = list(share["backlog"].values())
        waiting = [share["turn"], share["overlap"], *backlog]
        pool = [each for each in share["in_flight"] if each["place"] != "ring"]
        ring = [each for each in share["in_flight"] if each["place"] == "ring"]
        queued = [processor["queued_parts"]] if share["queued"] else []
        counts = [
            _count(waiting),
            share["held"]["count"],
            share["starved"]["count"],
            share["reserved"]["count"],
            _count(pool),
            _count(ring),
        ]
        groups = [*queued, *waiting, share["held"], share["starved"], *pool, *ring]
        oldest = max((each["oldest_ms"] for each in groups if each["oldest_ms"] is not None), default=None)
        shown = counts if known else [None] * len(counts)
        yield (number, state, share["volume"], share["queued"], *shown, _age(oldest))


def _in_flight(processor: Json) -> Iterator[tuple[object, ...]]:
    for share in processor["shares"]:
        for each in share["in_flight"]:
            where = (processor["processor"], share["volume"], each["kind"], each["place"])
            yield (*where, each["count"], _age(each["oldest_ms"]))


def _sentences(shown: Json) -> Iterator[str]:
    """Findings, a sentence each."""
    if shown["cutting"]:
        yield "a cut is being made"
    for processor in shown["processors"]:
        if not processor["answered"]:
            yield _stuck(processor)
        for share in processor["shares"]:
            where = f"processor {processor['processor']}, volume {share['volume']}"
            if share["cut_ms"] is not None:
                yield f"{where}: a cut has held its writes for {_age(share['cut_ms'])}"
            if share["given_up"]["count"]:
                since = _age(share["given_up"]["oldest_ms"])
                yield (
                    f"{where}: {share['given_up']['count']} parts have failed, and a device has had them for"
                    f" {since}"
                )
            if share["settling"]["count"]:
                yield f"{where}: a snapshot has waited {_age(share['settling']['oldest_ms'])} for its writes"
            doing = [word for word in ("checkpointing", "leaving") if share[word]]
            doing += ["rolling back"] if share["rolling_back"] else []
            if doing:
                yield f"{where}: {', '.join(doing)}"


def _stuck(processor: Json) -> str:
    """The sentence that a processor has not answered, with what is known about it."""
    sentence = f"processor {processor['processor']} has not answered"
    if processor["running"] or processor["sharing"]:
        whose = "its own thread" if processor["own_thread"] else "a thread that brought it work"
        volume = "" if processor["doing_volume"] is None else f" of volume {processor['doing_volume']}"
        sentence += (
            f": {whose} ({processor['thread_name']}, {processor['thread']}) has been at it for"
            f" {_age(processor['since_ms'])}, doing: {processor['doing']}{volume}"
        )
    if processor["shares_ms"] is None:
        return f"{sentence}; what its volumes have is not known, but for their parts in its queue"
    return f"{sentence}; what its volumes have is as it was {_age(processor['shares_ms'])} ago"


def _state(processor: Json) -> str:
    since = _age(processor["since_ms"])
    if not processor["answered"]:
        return f"stuck {since}"
    if processor["running"]:
        return f"busy {since}"
    return f"shared {since}" if processor["sharing"] else "idle"


def _count(groups: list[Json]) -> int:
    return sum(int(group["count"]) for group in groups)


def _age(milliseconds: int | None) -> str:
    """For people; '-' if it is not known."""
    return "-" if milliseconds is None else f"{milliseconds / 1000:.1f} s"
