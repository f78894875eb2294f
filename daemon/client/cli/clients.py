"""polyvol client: list, disconnect."""

from pathlib import Path
from typing import Any

import click

from polyvol.daemon.client.cli.client import ApiError, Client
from polyvol.daemon.client.cli.common import NumberType, json_option, state_dir_option
from polyvol.daemon.client.cli.output import print_json, print_table, say
from polyvol.daemon.client.cli.times import local_option, moments, zoned
from polyvol.daemon.client.cli.tree import Noun
from polyvol.daemon.errors import UnknownClient
from polyvol.mapping.sizes import SIZE_MAX, counted, format_size


@click.group(cls=Noun)
def client() -> None:
    """Clients that are connected to volumes and snapshots."""


@client.command(name="list")
@click.argument("export", required=False)
@local_option
@json_option
@state_dir_option
def list_clients(export: str | None, as_json: bool, state_dir: Path) -> None:
    """List the clients of all exports, or of one. EXPORT is VOLUME or VOLUME@SNAPSHOT."""
    clients = _clients(Client(state_dir), export)
    if as_json:
        print_json(clients)
        return
    since = moments([each["since"] for each in clients])
    print_table(
        ("ID", "EXPORT", "PEER", zoned("SINCE"), "IN FLIGHT", "RECEIVED", "SENT"),
        [
            (
                each["id"],
                each["export"] + (" (restore)" if each["restore"] else ""),
                each["peer"],
                connected,
                each["in_flight"],
                format_size(each["received"]),
                format_size(each["sent"]),
            )
            for each, connected in zip(clients, since, strict=True)
        ],
    )


@client.command()
@click.argument("ids", nargs=-1, type=NumberType(1, SIZE_MAX), metavar="ID...")
@click.option("--export", metavar="NAME", help="All clients of VOLUME or VOLUME@SNAPSHOT.")
@json_option
@state_dir_option
def disconnect(ids: tuple[int, ...], export: str | None, as_json: bool, state_dir: Path) -> None:
    """Disconnect clients by their ids, or all clients of an export.

    A request without an answer may or may not have been done. A client that connects again by itself can do
    so at once: end it on its host.
    """
    if ids and export is not None:
        raise click.UsageError("give the ids of clients, or --export NAME, and not both")
    if not ids and export is None:
        raise click.UsageError("give the ids of clients, or --export NAME")
    daemon = Client(state_dir)
    there = [each["id"] for each in _clients(daemon, export)]
    for unknown in [each for each in ids if each not in there]:
        daemon.delete("clients", str(unknown))  # is refused, before any other is disconnected
    ended = []
    for number in dict.fromkeys(ids or there):
        try:
            ended.append(daemon.delete("clients", str(number)))
        except ApiError as error:
            if error.code != UnknownClient.code:
                raise  # otherwise it has disconnected by itself
    if as_json:
        print_json(ended)
        return
    for each in ended:
        say(f"client {each['id']} of {each['export']} disconnected ({each['peer']})")
    if not ended:
        say(f"{counted(0, 'client')} of {export}" if export else "they have left by themselves")


def _clients(daemon: Client, export: str | None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = daemon.get("clients", **({} if export is None else {"export": export}))
    return found
