"""Shared by the rename commands: the request, and the settings of this host that have an export's old name.

How it works      polyvold identifies all objects by ids. Settings outside it keep the old name: records of
                  `polyvol attach` and enabled timers of polyvol-snapshot@VOLUME and polyvol-scrub@VOLUME.
                  They are searched for the names of the renamed exports, and listed, not changed. Other hosts
                  are not searched.
Errors            Those of the API. After the rename there are none: an unreadable record is listed.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from polyvol.daemon.client.attach.address import parse_uri
from polyvol.daemon.client.attach.errors import RecordUnusable
from polyvol.daemon.client.attach.records import Places
from polyvol.daemon.client.cli.client import ApiError, Client, Json
from polyvol.daemon.client.cli.output import print_json, say, warn
from polyvol.daemon.errors import DaemonNotRunning, DaemonUnreachable
from polyvol.daemon.state.directory import nbd_socket
from polyvol.mapping.errors import PolyvolError
from polyvol.mapping.os_errors import reason
from polyvol.mapping.sizes import counted

UNITS = "etc/systemd/system"
"""Where systemd has what an administrator has enabled, below the root."""
TIMERS = ("polyvol-snapshot", "polyvol-scrub")


def rename(state_dir: Path, parts: tuple[str, ...], new: str, as_json: bool) -> None:
    """Rename the object at this path of the API, and print that."""
    client = Client(state_dir)
    done = client.post(*parts, "rename", body={"name": new})
    renamed = {each["old"]: each["name"] for each in done["exports"]}
    left = list(_not_following(client, state_dir, renamed)) if renamed else []
    if as_json:
        print_json({**done, "not_following": left})
        return
    others = [old for old in renamed if old != done["old"]]
    with_them = f", with {counted(len(others), 'snapshot')}" if others else ""
    say(f"{done['noun']} {done['old']} was renamed to {done['name']}{with_them}")
    for each in left:
        warn(f"{each['what']} still has the name {each['old']}: {each['cure']}")


def _not_following(client: Client, state_dir: Path, renamed: Mapping[str, str]) -> Iterator[Json]:
    """A setting with the old name of an export: what it is, where, and what to do."""
    places = Places.default()
    try:
        names = places.names()
    except OSError as error:
        names = []
        yield _found("the directory of attachments", "/etc/polyvol/attached", "-", reason(error))
    ours = _sockets(client, state_dir) if names else set()
    for name in names:
        yield from _attachment(places, name, renamed, ours)
    for old, new in renamed.items():
        for program in TIMERS if "@" not in old else ():
            timer = f"{program}@{old}.timer"
            for wants in sorted((places.root / UNITS).glob("*.wants")):
                if (wants / timer).is_symlink():
                    cure = f"`systemctl disable --now {timer}`, then enable {program}@{new}.timer"
                    yield _found(f"timer {timer}", str(wants / timer), old, cure)


def _attachment(places: Places, name: str, renamed: Mapping[str, str], ours: set[Path]) -> Iterator[Json]:
    """The records of one attachment, if they have the old name of an export of this polyvold."""
    path = f"/etc/polyvol/attached/{name}.json"
    try:
        records = (places.wanted(name), places.now(name))
        addresses = [parse_uri(each.uri, name) for each in records if each is not None and each.uri]
    except RecordUnusable as error:
        yield _found(f"attachment {name}", path, "-", error.message)
        return
    except PolyvolError:
        return  # its address cannot be resolved
    for address in addresses:
        here = address.socket is None or _real(address.socket) in ours
        if address.export in renamed and here:
            new = renamed[address.export]
            cure = f"`polyvol detach {name}`, then attach {new}"
            yield _found(f"attachment {name} ({address.uri})", path, address.export, cure)
            return


def _sockets(client: Client, state_dir: Path) -> set[Path]:
    """The unix sockets on which this polyvold serves NBD."""
    found = {_real(nbd_socket(state_dir.absolute()))}
    try:
        for uri in client.get("status")["daemon"]["nbd"]:
            socket = parse_uri(uri, "").socket
            if socket is not None:
                found.add(_real(socket))
    except (ApiError, DaemonNotRunning, DaemonUnreachable, PolyvolError):
        pass  # the usual one is known
    return found


def _real(path: Path) -> Path:
    return path.resolve()


def _found(what: str, path: str, old: str, cure: str) -> Json:
    return {"what": what, "path": path, "old": old, "cure": cure}
