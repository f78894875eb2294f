"""Hooks: commands that quiesce an application for a cut, and thaw it afterwards.

How it works      `around` runs the quiesce commands of a schedule and of the volumes, then returns a function
                  that the coordinator calls as soon as the cut is made. That function starts the thaw
                  commands, and returns the consistency of the snapshots: 'application' if every command
                  succeeded and none was thawed before the cut, else 'crash', and why. Commands are run
                  directly, or by /bin/sh if requested, as polyvold's user, each with its own supervisor
                  (command.py), with few variables in their environment.
Invariants        HK1 if a quiesce command was started, its thaw command is run, once: after the cut, or when
                  the quiesce command failed, or at the time-out, whatever the state of the cut; twice if it
                  fails; HK2 a command that fails or exceeds its time-out is killed, with all processes that
                  it started, before the thaw; if one cannot be killed because it hangs in the kernel, the
                  thaw is run at once, and again when it has ended; HK3 `catalog_lock` is never held while
                  waiting for a command; HK4 hooks of one volume are not run by two snapshots at a time; HK5
                  processes that a quiesce command left in the background are ended when its thaw command has
                  ended; those that a successful thaw command left stay: they may be the application.
Owner and locks   A lock for each volume and schedule with hooks, held from quiesce to the end of thaw; a
                  waiter waits for the longest time that the holder may take, or until polyvold is stopped.
                  `_Hook.lock` decides which thread thaws.
Durability        A thaw is recorded before its quiesce command is started: if polyvold dies in between, all
                  processes of its hooks are ended at once (supervisor.py), and the next start runs the thaw
                  command (`settle`).
Errors            HooksBusy, if too many wait for hooks; SnapshotFromHook. Other failures are a warning in the
                  log and an event, and the snapshot is still taken.
"""

import contextlib
import logging
import os
import shlex
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

from polyvol.daemon.context import Context
from polyvol.daemon.hooks.command import Call, Command, is_of_command
from polyvol.daemon.host.caller import caller_pid
from polyvol.daemon.isolation import isolate
from polyvol.daemon.types.hooks import HookSettings, HookView
from polyvol.mapping.errors import PolyvolError
from polyvol.mapping.ids import VolumeId
from polyvol.mapping.records.groups import Group
from polyvol.mapping.records.hooks import Hooks
from polyvol.mapping.records.schedules import Schedule
from polyvol.mapping.records.snapshots import Consistency
from polyvol.mapping.records.volumes import Volume
from polyvol.snapshot.coordinator import Thaw
from polyvol.snapshot.errors.hooks import BadHooks, HooksBusy, SnapshotFromHook

TIMEOUT_S_MAX = 600
CONCURRENT_MAX = 4
"""How many snapshots that were asked for may be at their hooks: the API has more threads than that."""
_KILLED_WAIT_S = 2.0
_LOCK_POLL_S = 0.1
_STOPPING_S = 10.0
"""What a thaw command is left when polyvold stops."""
_COMMAND_MAX = 32_768
"""The longest command, in characters: Linux takes four times that in one argument, of four bytes each."""
_log = logging.getLogger("polyvol.hooks")


@dataclass
class _Hook:
    """The hooks of one volume, or of a schedule, around one cut."""

    what: str
    volumes: list[VolumeId]
    thaw: Call | None
    owed: int | None = None
    trouble: str | None = None
    thawed: bool = False
    """Its thaw command was begun, or need not be."""
    thaw_trouble: str | None = None
    """Why its thaw command failed, each time that it was run, as a clause."""
    left: Command | None = None
    """Its quiesce command, if something of that is left: in the background, or not to be killed."""
    thread: threading.Thread | None = None
    timer: threading.Timer | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass
class Around:
    """What `around` gives: `thaw` ends what was quiesced, None if there are no hooks. When `around` has
    ended, `thaw_troubles` has by volume which thaw commands failed and why, as a clause."""

    thaw: Thaw | None = None
    thaw_troubles: dict[VolumeId, str] = field(default_factory=dict)


def checked_hooks(settings: HookSettings) -> Hooks | None:
    """Hooks as the catalog has them; None for none; BadHooks."""
    if settings.quiesce is None:
        if settings.thaw is not None:
            raise BadHooks(why="there is a thaw command, and no quiesce command")
        return None
    if not 1 <= settings.timeout_s <= TIMEOUT_S_MAX:
        raise BadHooks(why=f"a time-out of {settings.timeout_s} s is not from 1 s to {TIMEOUT_S_MAX} s")
    for command in (settings.quiesce, settings.thaw):
        if command is None:
            continue
        if "\0" in command:
            raise BadHooks(why=f"{command[:100]!r} has a null character in it")
        if len(command) > _COMMAND_MAX:
            raise BadHooks(why=f"a command of {len(command)} characters is longer than {_COMMAND_MAX}")
        if not settings.shell:
            _check_command(command)
    return Hooks(settings.quiesce, settings.thaw, settings.timeout_s, settings.shell)


def hook_view(hooks: Hooks | None) -> HookView | None:
    """Hooks as a user sees them."""
    if hooks is None:
        return None
    return HookView(quiesce=hooks.quiesce, thaw=hooks.thaw, timeout_s=hooks.timeout_s, shell=hooks.shell)


class HookRunner:
    """Runs the hooks of one state directory."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._locks: dict[tuple[str, int], threading.Lock] = {}
        self._asked = threading.BoundedSemaphore(CONCURRENT_MAX)
        self._under_way: Counter[int] = Counter()
        """How many snapshots of a volume have hooks under way, by its id; under `_lock`."""
        self._settling: list[threading.Thread] = []

    def settle(self) -> None:
        """At start: run the thaw commands that the last run still owed, without waiting for them."""
        for owed, call in self._context.catalog.hooks.thaws_owed().items():
            with isolate(self._context, "running a thaw command that is owed"):
                assert isinstance(call, dict)
                thaw = Call(**call)
                text = f"the thaw command of {thaw.what} has not succeeded yet: it is run now"
                self._context.events.add("warning", text)
                thread = threading.Thread(
                    target=self._settle_one, args=(thaw, owed), name="polyvol-thaw", daemon=True
                )
                thread.start()
                self._settling.append(thread)

    def stop(self) -> None:
        """Have quiesce commands end now; idempotent."""
        self._stopping.set()
        for thread in self._settling:
            thread.join()

    def refuse_from_hook(self, volumes: Sequence[Volume]) -> None:
        """SnapshotFromHook if a hook command asks for a snapshot that runs hooks: those would wait for the
        command, and it for them; killed at its time-out, it would leave a request that begins it again.
        Likewise for a volume with hooks under way, also if they are a schedule's."""
        if not is_of_command(caller_pid()):
            return
        with self._lock:
            under_way = set(self._under_way)
        for volume in volumes:
            if self._context.catalog.hooks.of_volume(volume.id) is not None:
                raise SnapshotFromHook(name=volume.name, why="has hooks")
            if volume.id in under_way:
                raise SnapshotFromHook(name=volume.name, why="has hooks under way")

    @contextmanager
    def around(
        self, volumes: Sequence[Volume], name: str | None, group: Group | None, schedule: Schedule | None
    ) -> Iterator[Around]:
        """Run the quiesce commands, and the thaw commands when the cut is made, at the latest at the end."""
        wanted = self._wanted(volumes, schedule)
        if not wanted:
            yield Around()
            return
        environment = self._environment(volumes, name, group, schedule)
        done: list[_Hook] = []
        with contextlib.ExitStack() as locks:
            if schedule is None:
                if not self._asked.acquire(blocking=False):
                    raise HooksBusy(count=CONCURRENT_MAX)
                locks.callback(self._asked.release)
            try:
                names = [volume.name for volume in volumes]
                locks.enter_context(self._counted(volumes))
                with self._context.locks.shown(names, "snapshot create (quiesce commands)"):
                    for key, what, concerned, hooks in wanted:
                        hook = _Hook(what, concerned, _call("thaw", what, hooks.thaw, hooks, environment))
                        done.append(hook)
                        hook.trouble = self._acquire(locks, key, what, hooks)
                        if hook.trouble is not None:
                            hook.thawed = True
                            self._warn(hook)
                            continue
                        self._quiesce(hook, _call("quiesce", what, hooks.quiesce, hooks, environment))
                around = Around(lambda: self._thaw_all(done))
                yield around
            finally:
                self._thaw_all(done)
                for hook in done:
                    if hook.thread is not None:
                        hook.thread.join()
            around.thaw_troubles = _thaw_troubles(done)

    @contextmanager
    def _counted(self, volumes: Sequence[Volume]) -> Iterator[None]:
        """Count these volumes among those with hooks in progress."""
        ids = Counter(volume.id for volume in volumes)
        with self._lock:
            self._under_way += ids
        try:
            yield
        finally:
            with self._lock:
                self._under_way -= ids  # this drops those at zero

    def _wanted(
        self, volumes: Sequence[Volume], schedule: Schedule | None
    ) -> list[tuple[tuple[str, int], str, list[VolumeId], Hooks]]:
        """The owners of hooks to run: key, description, the volumes concerned, and the hooks."""
        table = self._context.catalog.hooks
        found = []
        if schedule is not None and (hooks := table.of_schedule(schedule.id)) is not None:
            ids = [volume.id for volume in volumes]
            found.append((("schedule", schedule.id), f"schedule {schedule.name}", ids, hooks))
        for volume in sorted(volumes, key=lambda each: each.id):
            if (hooks := table.of_volume(volume.id)) is not None:
                found.append((("volume", volume.id), f"volume {volume.name}", [volume.id], hooks))
        return found

    def _acquire(
        self, locks: contextlib.ExitStack, key: tuple[str, int], what: str, hooks: Hooks
    ) -> str | None:
        """Take the lock of some hooks (HK4); or why they cannot be run."""
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        until = time.monotonic() + 2 * hooks.timeout_s + 2 * _KILLED_WAIT_S
        while not lock.acquire(timeout=_LOCK_POLL_S):
            if time.monotonic() > until:
                return f"other hooks of {what} have not come to their end"
            if self._stopping.is_set():
                return "polyvold is being stopped"
        locks.callback(lock.release)
        return "polyvold is being stopped" if self._stopping.is_set() else None

    def _quiesce(self, hook: _Hook, quiesce: Call | None) -> None:
        assert quiesce is not None, "nobody has hooks without it"
        if hook.thaw is not None:
            try:
                hook.owed = self._context.catalog.hooks.owe_thaw(asdict(hook.thaw))
            except PolyvolError as error:
                hook.trouble, hook.thawed = f"its quiesce command was not run: {error.message}", True
                self._warn(hook)
                return
        began = time.monotonic()
        trouble, hook.left = self._execute(quiesce, 0.0)
        if trouble is not None:
            hook.trouble = f"its quiesce command {trouble}"
            self._thaw(hook)
            self._warn(hook)
            return
        left_s = max(0.0, quiesce.timeout_s - (time.monotonic() - began))
        hook.timer = threading.Timer(left_s, self._time_out, (hook, quiesce.timeout_s))
        hook.timer.daemon = True
        hook.timer.start()

    def _time_out(self, hook: _Hook, timeout_s: int) -> None:
        with hook.lock:
            if hook.thawed:
                return
            hook.trouble = f"it was quiesced for {timeout_s} s, its time-out, before the cut was made"
        self._thaw(hook)
        self._warn(hook)

    def _thaw_all(self, hooks: Sequence[_Hook]) -> dict[int, tuple[Consistency, str | None]]:
        """Start all thaws that are due; the consistency of the snapshots of a cut that was just made."""
        marks: dict[int, tuple[Consistency, str | None]] = {}
        for hook in reversed(hooks):
            in_time = self._thaw(hook)
            trouble = None if in_time else f"{hook.what}: {hook.trouble}"
            for volume in hook.volumes:
                if trouble is not None or volume not in marks:
                    marks[volume] = ("application", None) if trouble is None else ("crash", trouble)
        return marks

    def _thaw(self, hook: _Hook) -> bool:
        """Start the thaw (HK1); whether everything succeeded until now."""
        with hook.lock:
            if hook.thawed:
                return False
            hook.thawed = True
            if hook.timer is not None:
                hook.timer.cancel()
            owed = hook.thaw is not None and hook.owed is not None
            if owed or hook.left is not None:
                hook.thread = threading.Thread(
                    target=self._thaw_in_background, args=(hook,), name="polyvol-thaw", daemon=True
                )
                hook.thread.start()
            return hook.trouble is None

    def _thaw_in_background(self, hook: _Hook) -> None:
        """Run the thaw command, then end the processes that the quiesce command left."""
        if hook.thaw is not None and hook.owed is not None:
            hook.thaw_trouble = self._run_thaw(hook.thaw)
        if hook.left is not None and not hook.left.end(_KILLED_WAIT_S):  # HK2
            threading.Thread(
                target=self._thaw_again, args=(hook,), name="polyvol-thaw-again", daemon=True
            ).start()
        elif hook.thaw_trouble is None:
            self._forget(hook.owed)

    def _thaw_again(self, hook: _Hook) -> None:
        assert hook.left is not None, "something could not be ended"
        hook.left.end(None)
        if hook.thaw is not None and self._run_thaw(hook.thaw) is None:
            self._forget(hook.owed)

    def _settle_one(self, thaw: Call, owed: int) -> None:
        if self._run_thaw(thaw) is None:
            self._forget(owed)

    def _forget(self, owed: int | None) -> None:
        if owed is not None:
            with contextlib.suppress(PolyvolError):  # otherwise the next start runs it again
                self._context.catalog.hooks.forget_thaw(owed)

    def _run_thaw(self, thaw: Call) -> str | None:
        """Run a thaw command, twice if it fails; why it failed, as a clause, or None."""
        trouble: str | None = None
        for again in (True, False):
            trouble, left = self._execute(thaw, _STOPPING_S)
            if trouble is None:
                if left is not None:
                    left.leave()  # HK5
                return None
            rest = "it is run again" if again else "it is run again when polyvold is next started"
            self._context.events.add("warning", f"the thaw command of {thaw.what} {trouble}; {rest}")
            if self._stopping.is_set():
                break
        return trouble

    def _warn(self, hook: _Hook) -> None:
        text = f"the hooks of {hook.what} failed, so its snapshot is only crash-consistent: {hook.trouble}"
        self._context.events.add("warning", text)

    def _environment(
        self, volumes: Sequence[Volume], name: str | None, group: Group | None, schedule: Schedule | None
    ) -> dict[str, str]:
        values = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
        values["POLYVOL_STATE"] = str(self._context.state_dir)
        values["POLYVOL_VOLUMES"] = " ".join(volume.name for volume in volumes)
        values["POLYVOL_SNAPSHOT"] = name or ""
        values["POLYVOL_GROUP"] = "" if group is None else group.name
        values["POLYVOL_SCHEDULE"] = "" if schedule is None else schedule.name
        return values

    def _execute(self, call: Call, stopping_s: float) -> tuple[str | None, Command | None]:
        """Run a command to its end or its time-out: the failure, or None; and the command if processes of it
        are left, because they could not be killed (HK2) or run in the background."""
        command = Command(call)
        ended = command.wait(self._stopping, stopping_s)
        if ended.trouble is None:
            return None, None if ended.alone else command
        gone = ended.alone or command.end(_KILLED_WAIT_S)
        trouble = ended.trouble + (f": {command.said}" if command.said else "")
        return trouble, None if gone else command


def _thaw_troubles(hooks: Sequence[_Hook]) -> dict[VolumeId, str]:
    """Which thaw commands failed and why, as a clause, by the volumes concerned."""
    troubles: dict[VolumeId, str] = {}
    for hook in hooks:
        if hook.thaw_trouble is not None:
            trouble = f"the thaw command of {hook.what} {hook.thaw_trouble}"
            troubles |= dict.fromkeys(hook.volumes, trouble)
    return troubles


def _check_command(command: str) -> None:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise BadHooks(why=f"{command!r} cannot be taken apart: {error}") from error
    if not words or not words[0].startswith("/"):
        raise BadHooks(why=f"{command!r} does not begin with the absolute path of a program")
    is_file = os.path.isfile(words[0])  # noqa: PTH113 (Path.is_file raises for names that are too long)
    if not is_file or not os.access(words[0], os.X_OK):  # a directory has the same right
        raise BadHooks(why=f"{words[0]} is not a program that polyvold may run")


def _call(
    stage: str, what: str, command: str | None, hooks: Hooks, environment: dict[str, str]
) -> Call | None:
    if command is None:
        return None
    arguments = ["/bin/sh", "-c", command] if hooks.shell else shlex.split(command)
    return Call(what, arguments, {**environment, "POLYVOL_STAGE": stage}, hooks.timeout_s)
