"""asking: sends verbs to a polyvold, and records their effects on volumes and snapshots in a ledger.

How it works      Each method requests one verb by the control API. Before the request it records all possible
                  results in the ledger; after the answer, the actual one. A refusal has changed nothing. If
                  there is no answer, because the daemon was killed, the ledger keeps both possibilities.
Owner and locks   Any number of threads, each verb in its own; the ledger has the lock.
Errors            Gone without an answer; Lost for a refusal that the ledger does not explain. A method
                  returns False when it was refused, or when there is no object for it.
"""

import fnmatch
import itertools
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from polyvol.daemon.client.cli.client import ApiError, Client
from polyvol.daemon.errors import DaemonNotRunning, DaemonUnreachable
from tests.crash.history import Lost
from tests.crash.ledger import Held, Image, Ledger, Live
from tests.support import nbd
from tests.support.daemon import Daemon
from tests.support.proc import wait_until

PARTITION = 1 << 20
NOTES_MAX = 200_000
REFUSALS = {
    *("unknown-volume", "unknown-snapshot", "unknown-group", "unknown-group-snapshot", "unknown-schedule"),
    *("unknown-device", "snapshot-held", "snapshot-in-group", "snapshot-in-use", "volume-in-use"),
    *("volume-open", "volume-in-group", "volume-held", "group-has-snapshots", "name-in-use", "not-held"),
    *("not-larger", "scrub-running", "no-scrub", "too-many-logs", "device-in-use"),
    *("device-path-in-use", "volume-changed", "group-changed", "volume-busy", "group-busy", "device-busy"),
}
"""What another thread's verb, or the daemon's own threads, can be the reason for."""

BETWEEN = re.compile("is not served: it is being (created|deleted|made)")


class Gone(Exception):
    """The daemon does not answer."""


class Asking:
    """Verbs on one daemon."""

    def __init__(self, daemon: Daemon, ledger: Ledger) -> None:
        self.daemon = daemon
        self.ledger = ledger
        self.asked: Counter[str] = Counter()
        self.notes: deque[str] = deque(maxlen=NOTES_MAX)
        self._api = Client(daemon.state_dir)
        self._numbers = itertools.count(1)
        self._verbs = itertools.count(1)
        self._began = time.monotonic()

    def name(self, letter: str) -> str:
        """A name that was never used; of one length, so that patterns match only what came before."""
        return f"{letter}{next(self._numbers):06}"

    def note(self, text: str) -> None:
        """A line for the log of verbs."""
        self.notes.append(f"{time.monotonic() - self._began:.3f} {text}")

    def keep_notes(self, path: Path) -> None:
        """Write the log of verbs."""
        path.write_text("".join(f"{line}\n" for line in self.notes))

    def ask(self, method: str, *path: str, **body: object) -> Any:
        """The API's answer; ApiError for a refusal that can be."""
        what = f"{method} {'/'.join(path)} {body or ''}"
        self.asked[f"{method} {path[0]}" + (f" {path[-1]}" if len(path) > 2 else "")] += 1
        self.note(f"ask {what}")
        call = getattr(self._api, method)
        try:
            answer = call(*path, **({"body": body} if method in ("post", "patch") else {}))
        except ApiError as error:
            self.note(f"refused ({error.code}: {error}) {what}")
            if error.code not in REFUSALS and not BETWEEN.search(str(error)):
                raise Lost(f"{what} was refused with {error.code}: {error}") from error
            raise
        except (DaemonNotRunning, DaemonUnreachable) as error:
            self.note(f"no answer {what}")
            raise Gone from error
        self.note(f"done {what}")
        return answer

    def _do(self, end: Callable[[bool], object], method: str, *path: str, **body: object) -> bool:
        """Ask, and tell `end` whether it was done."""
        try:
            self.ask(method, *path, **body)
        except ApiError:
            end(False)
            return False
        end(True)
        return True

    def _find(self, volume: str, name: str) -> tuple[Live, Held] | None:
        live = self.ledger.volumes.get(volume)
        held = None if live is None else live.snapshots.get(name)
        return None if live is None or held is None else (live, held)

    # Volumes

    def create(self, size: int, *, name: str | None = None, **body: object) -> bool:
        """A volume of zeros."""
        name = name or self.name("v")
        made = Live(name, [Image(bytearray(size))])
        body = {"name": name, "size": size, "partition_size": PARTITION, **body}
        return self._do(self._making(name, made), "post", "volumes", **body)

    def clone(self, volume: str, snapshot: str, processors: int, *, name: str | None = None) -> bool:
        """A volume made from a snapshot."""
        name = name or self.name("v")
        with self.ledger.lock:
            if (found := self._find(volume, snapshot)) is None:
                return False
            made = Live(name, [image.copy() for image in found[1].images])
            end = self._making(name, made)
        path = ("volumes", volume, "snapshots", snapshot, "clones")
        return self._do(end, "post", *path, name=name, processors=processors)

    def _making(self, name: str, made: Live) -> Callable[[bool], object]:
        made.watch()
        self.ledger.making[name] = made

        def end(done: bool) -> None:
            with self.ledger.lock:
                del self.ledger.making[name]
                if done:
                    self.ledger.volumes[name] = made

        return end

    def delete_volume(self, volume: str) -> bool:
        """Delete a volume with its snapshots, once its clients have disconnected."""
        with self.ledger.lock:
            if (live := self.ledger.volumes.get(volume)) is None or live.quiet:
                return False
            live.quiet += 1
            live.leaving = True
        with suppress(AssertionError):  # then it is refused
            wait_until(lambda: live.clients == 0, "the clients' end", 1)

        def end(done: bool) -> None:
            with self.ledger.lock:
                if done:
                    self.ledger.volumes.pop(volume, None)
                else:
                    live.leaving = False
                    live.quiet -= 1

        return self._do(end, "delete", "volumes", volume)

    def grow(self, volume: str, blocks: int) -> bool:
        """Grow a volume by so many blocks."""
        with self.ledger.lock:
            live = self.ledger.volumes.get(volume)
            if live is None or live.changing:
                return False
            size = live.size + blocks * 4096
            self.ledger.begin_change(
                live, [image.copy(size=size) for image in live.images], next(self._verbs)
            )
        return self._do(self._change([live]), "post", "volumes", volume, "growth", size=size)

    def _change(self, lives: Sequence[Live]) -> Callable[[bool], object]:
        def end(done: bool) -> None:
            with self.ledger.lock:
                for live in lives:
                    self.ledger.end_change(live, done=done)

        return end

    # Snapshots

    def take(self, volume: str, *, name: str | None = None, scheduled: bool = False) -> bool:
        """A snapshot of one volume. `scheduled`: it may be dropped for room."""
        body: dict[str, object] = {"volumes": [volume], "scheduled": scheduled}
        return self._take(name, [volume], None, ("snapshots",), body)

    def take_whole(self, group: str, *, name: str | None = None) -> bool:
        """A snapshot of a group."""
        members = self.ledger.groups.get(group, ())
        return bool(members) and self._take(name, members, group, ("groups", group, "snapshots"), {})

    def _take(
        self,
        name: str | None,
        volumes: Iterable[str],
        group: str | None,
        path: tuple[str, ...],
        body: dict[str, object],
    ) -> bool:
        name = name or self.name("s")
        whole = None if group is None else f"@{group}@{name}"
        with self.ledger.lock:
            lives = [self.ledger.volumes[one] for one in volumes if one in self.ledger.volumes]
            for live in lives:
                self.ledger.begin_taking(live, name, dropped=body.get("scheduled") is True, whole=whole)
        return self._do(self._taken(lives, name), "post", *path, **{**body, "name": name})

    def _taken(self, lives: Sequence[Live], name: str | None) -> Callable[[bool], object]:
        def end(done: bool) -> None:
            with self.ledger.lock:
                for live in lives if name is not None else ():
                    self.ledger.end_taking(live, name or "", done=done)

        return end

    def delete(self, volume: str, snapshot: str) -> bool:
        """Delete a snapshot, unless it is held or part of a group's."""
        return self._delete([(volume, snapshot)], "delete", "volumes", volume, "snapshots", snapshot)

    def delete_whole(self, group: str, snapshot: str) -> bool:
        """Delete a group's snapshot, unless it is held."""
        members = [(volume, snapshot) for volume in list(self.ledger.volumes)]
        return self._delete(members, "delete", "groups", group, "snapshots", snapshot)

    def _delete(self, members: Iterable[tuple[str, str]], method: str, *path: str) -> bool:
        with self.ledger.lock:
            found = [(*both, name) for volume, name in members if (both := self._find(volume, name))]
            for _, held, _ in found:
                held.leaving += 1
        fixed = any(held.tags for _, held, _ in found)

        def end(done: bool) -> None:
            with self.ledger.lock:
                for live, held, name in found:
                    held.leaving -= 1
                    if done:
                        live.snapshots.pop(name, None)
                    if done and fixed and held.tags:
                        raise Lost(f"{live.name}@{name} is held by {held.tags}, and was deleted")

        return bool(found) and self._do(end, method, *path)

    def delete_some(self, volume: str, decade: str) -> bool:
        """Delete a volume's snapshots with this prefix and one digit, in the background."""
        pattern = f"{decade}?"
        with self.ledger.lock:
            if (live := self.ledger.volumes.get(volume)) is None:
                return False
            chosen = {name: live.snapshots[name] for name in live.snapshots if fnmatch.fnmatch(name, pattern)}
            for held in chosen.values():
                held.leaving += 1
            for name, held in live.taking.items():
                held.dropped |= fnmatch.fnmatch(name, pattern)
        try:
            kept = self.ask("post", "volumes", volume, "deletions", names=[pattern])["kept"]
        except ApiError:
            kept = [{"name": name} for name in chosen]
        with self.ledger.lock:
            for name, held in chosen.items():
                held.leaving -= 1
                if name not in {each["name"] for each in kept}:
                    live.snapshots.pop(name, None)
        return len(kept) < len(chosen)

    def hold(self, volume: str, snapshot: str) -> bool:
        """A snapshot is held by one more tag."""
        if (found := self._find(volume, snapshot)) is None:
            return False
        tag, held = self.name("t"), found[1]
        path = ("volumes", volume, "snapshots", snapshot, "holds")
        return self._do(lambda done: held.tags.update({tag} if done else ()), "post", *path, tag=tag)

    def release(self, volume: str, snapshot: str) -> bool:
        """One of the tags that hold a snapshot is released."""
        with self.ledger.lock:
            found = self._find(volume, snapshot)
            if found is None or not found[1].tags:
                return False
            tag = found[1].tags.pop()
        path = ("volumes", volume, "snapshots", snapshot, "holds")
        return self._do(lambda done: None, "post", *path, tag=tag, release=True)

    # Rollbacks

    def roll_back(self, volume: str, snapshot: str, *, safety: bool, name: str | None = None) -> bool:
        """Roll a volume back to its snapshot. `name`: of the safety snapshot."""
        path = ("volumes", volume, "snapshots", snapshot, "rollback")
        kept = (name or self.name("s")) if safety else None
        return self._roll_back([volume], snapshot, None, path, kept)

    def roll_back_whole(self, group: str, snapshot: str, *, safety: bool) -> bool:
        """Roll all volumes of a group's snapshot back to it."""
        whole = f"@{group}@{snapshot}"
        with self.ledger.lock:
            volumes = [
                name
                for name, live in self.ledger.volumes.items()
                if snapshot in live.snapshots and live.snapshots[snapshot].whole == whole
            ]
        path = ("groups", group, "snapshots", snapshot, "rollback")
        return self._roll_back(volumes, snapshot, group, path, self.name("s") if safety else None)

    def _roll_back(
        self,
        volumes: Iterable[str],
        snapshot: str,
        group: str | None,
        path: tuple[str, ...],
        kept: str | None,
    ) -> bool:
        whole = None if group is None or kept is None else f"@{group}@{kept}"
        with self.ledger.lock:
            found = [both for volume in volumes if (both := self._find(volume, snapshot))]
            if not found or any(live.changing or live.leaving for live, _ in found):
                return False
            verb, lives = next(self._verbs), [live for live, _ in found]
            for live, held in found:
                self.ledger.begin_change(live, held.images, verb)
                if kept is not None:
                    before = [image.copy() for image in live.images if image.side == (verb, False)]
                    live.taking[kept] = Held(before, whole=whole)
            ends = (self._change(lives), self._taken(lives, kept))
        body: dict[str, object] = {"force": True, "safety": kept is not None, "safety_name": kept}
        return self._do(lambda done: [end(done) for end in ends], "post", *path, **body)

    # Groups, schedules and what else there is

    def group(self, volumes: Iterable[str], *, name: str | None = None) -> bool:
        """A group of these volumes."""
        name, members = name or self.name("g"), sorted(volumes)

        def end(done: bool) -> None:
            if done:
                self.ledger.groups[name] = set(members)

        return self._do(end, "post", "groups", name=name, volumes=members)

    def delete_group(self, group: str) -> bool:
        """Delete a group, unless it has snapshots."""
        members = self.ledger.groups.pop(group, None)

        def end(done: bool) -> None:
            if not done and members is not None:
                self.ledger.groups[group] = members

        return self._do(end, "delete", "groups", group)

    def plain(self, method: str, *path: str, **body: object) -> bool:
        """A verb that changes nothing of what the ledger has."""
        return self._do(lambda done: None, method, *path, **body)

    def look(self) -> None:
        """Find the snapshots that polyvold's schedules took, those of a group all at once."""
        views = self.ask("get", "snapshots")
        with self.ledger.lock:
            for view in views:
                self.adopt(view)

    def adopt(self, view: Any) -> None:
        """A snapshot as the API lists it; what a schedule made may be a new one."""
        name = str(view["name"])
        with self.ledger.lock:
            live = self.ledger.volumes.get(view["volume"])
            if live is None or name in live.snapshots or name in live.taking or not view["schedule"]:
                return
            images = [image.copy() for image in live.since.images]
            live.snapshots[name] = Held(images, dropped=True, whole=view["whole"])

    def read(self, volume: str, snapshot: str) -> bool:
        """Compare all bytes of a snapshot."""
        if (found := self._find(volume, snapshot)) is None:
            return False
        export = f"{volume}@{snapshot}"
        try:
            data = nbd.read_all(self.daemon.uri(export))
        except nbd.NbdError:
            return False  # it is gone, or the daemon is
        self.note(f"read {export}")
        self.ledger.compare(f"snapshot {snapshot} of volume {volume}", found[1], data)
        return True
