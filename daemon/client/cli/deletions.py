"""Deleting many snapshots from the command line, by names and patterns; a bar until the space is back.

How it works      Of one volume all are deleted, or none if a name is unknown or a pattern matches nothing.
                  The latter is checked here: it is not an error of the API. An error of one volume or
                  group is printed, and the others are still deleted, as rm does.
"""

import fnmatch
import sys
import time
from collections.abc import Sequence

from polyvol.daemon.client.cli.client import ApiError, Client, Json
from polyvol.daemon.client.cli.common import present_name, snapshot_parts
from polyvol.daemon.client.cli.ending import tell
from polyvol.daemon.client.cli.output import print_json, say
from polyvol.daemon.client.transfer.progress import progress
from polyvol.daemon.errors import EXIT_CODE, NoMatch
from polyvol.mapping.errors import UnknownVolume
from polyvol.mapping.names import is_pattern, refuse_repeats
from polyvol.mapping.sizes import counted, format_size

_POLL_S = 0.1


def delete_many(client: Client, names: Sequence[str], *, wait: bool, as_json: bool) -> None:
    """Delete all named snapshots; print those that stay, and exit with status 1 then."""
    wanted: dict[tuple[str, str], list[str]] = {}
    refuse_repeats("snapshot", names)
    for name in names:
        kind, target, _, own_name = snapshot_parts(name)
        wanted.setdefault((kind, target), []).append(own_name)
    answers, failed = [], False
    for (kind, target), own_names in wanted.items():
        try:
            if kind == "groups":
                answers += _delete_of_group(client, target, own_names)
            else:
                answers.append(_delete_of_volume(client, target, own_names, wait=wait))
        except (ApiError, NoMatch) as error:
            tell(error, as_json=as_json)
            failed = True
    if as_json and answers:
        print_json(answers)
    elif not as_json:
        _print(answers)
    if failed or any(answer.get("kept") for answer in answers):
        sys.exit(EXIT_CODE)


def _delete_of_volume(client: Client, volume: str, names: list[str], *, wait: bool) -> Json:
    patterns = [name for name in names if is_pattern(name)]
    taken = [each["name"] for each in client.get("snapshots", volume=volume)] if patterns else []
    for pattern in patterns:
        if not fnmatch.filter(taken, pattern):
            raise NoMatch(text=f"{volume}@{pattern}", target=volume)
    begun = client.post("volumes", volume, "deletions", body={"names": names})
    if not wait or not begun["left"]:
        return begun
    return {**_wait(client, volume, begun), "kept": begun["kept"]}


def _delete_of_group(client: Client, group: str, names: list[str]) -> list[Json]:
    """Delete the snapshots of a group that match names or patterns, each as a whole."""
    taken = [each["name"] for each in client.get("groups", group, "snapshots")]
    chosen: dict[str, None] = {}
    for name in names:
        found = fnmatch.filter(taken, name) if is_pattern(name) else [name]
        if not found:
            raise NoMatch(text=f"@{group}@{name}", target=f"@{group}")
        chosen |= dict.fromkeys(found)
    return [client.delete("groups", group, "snapshots", name) for name in chosen]


def _print(answers: Sequence[Json]) -> None:
    groups: dict[str, int] = {}
    for answer in answers:
        if "group" in answer:
            groups[answer["group"]] = groups.get(answer["group"], 0) + 1
            continue
        for kept in answer["kept"]:
            say(f"snapshot {answer['volume']}@{kept['name']} stays: {kept['reason']}", err=True)
        text = f"volume {answer['volume']}: {counted(answer['total'], 'snapshot')} deleted"
        done = answer["total"] and not answer["left"]
        say(f"{text}, {format_size(answer['freed'])} given back" if done else text)
    for group, count in groups.items():
        say(f"group {group}: {counted(count, 'snapshot')} deleted")


def _wait(client: Client, volume: str, begun: Json) -> Json:
    with progress(f"giving space of {volume} back", None) as advance:
        advance(0)
        while begun["left"]:
            time.sleep(_POLL_S)
            now = _deletions_of(client, volume)
            if now is None or now["uuid"] != begun["uuid"]:  # the name may be another volume's
                volume = present_name(client, begun["uuid"], volume)
                now = client.get("volumes", volume, "deletions")
                if now["uuid"] != begun["uuid"]:
                    continue  # it was renamed again
            advance(now["freed"] - begun["freed"])
            begun = now
    return begun


def _deletions_of(client: Client, volume: str) -> Json | None:
    """The deletions of the volume of this name; None if there is no such volume."""
    try:
        return client.get("volumes", volume, "deletions")
    except ApiError as error:
        if error.code != UnknownVolume.code:
            raise
        return None
