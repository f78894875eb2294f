"""Hooks: commands that make an application ready for a cut, and let it go on after it.

How it works      `around` runs the quiesce commands of a schedule and of the volumes, then gives a function
                  that the coordinator calls as soon as the cut is made. It begins the thaw commands, and says
                  what the snapshots show: 'application', if each command had succeeded and none had been
                  thawed before the cut, else 'crash', and why. Commands are run directly, or by /bin/sh where
                  that was asked for, as polyvold's user, in a session of their own, with little in their
                  environment.
Invariants        Q1 whose quiesce command was begun, his thaw command is run, once: after the cut, or when
                  the quiesce command failed, or at the time-out, whatever waits for what then; twice if it
                  fails; Q2 a command that outlives its time-out is killed, with what it started, before it is
                  thawed; one that cannot be killed as it hangs in the kernel is thawed at once, and again
                  when it has ended; Q3 `changes` is never held while a command is waited for; Q4 hooks of one
                  volume are not run by two snapshots at a time.
Owner and locks   A lock for each volume and schedule with hooks, held from quiesce to the end of thaw; waited
                  for as long as its holder may take. `_Hook.lock` over who thaws.
Durability        A thaw is recorded before its quiesce command is begun: should polyvold die in between, the
                  next start runs it (`settle`).
Errors            HooksBusy, if too many wait for hooks. Otherwise what fails is a warning in the log and
                  among the events, and the snapshot is taken all the same.
"""

import contextlib
import logging
import os
import select
import shlex
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

from polyvol.daemon.context import Context
from polyvol.daemon.group_requests import HookSettings
from polyvol.daemon.views import HookView
from polyvol.mapping.errors import PolyvolError
from polyvol.mapping.group import Consistency, Group, Hooks, Schedule
from polyvol.mapping.records import Volume
from polyvol.snapshot.coordinator import Thaw
from polyvol.snapshot.group_errors import BadHooks, HooksBusy

TIMEOUT_S_MAX = 600
AT_A_TIME = 4
"""How many snapshots that were asked for may be at their hooks: the API has more threads than that."""
_KILLED_WAIT_S = 2.0
_POLL_S = 0.1
_STOPPING_S = 10.0
"""What a thaw command is left when polyvold stops."""
_OUTPUT_BYTES_MAX = 300
_log = logging.getLogger("polyvol.hooks")


@dataclass(frozen=True)
class _Call:
    """A command to run."""

    what: str
    arguments: list[str]
    environment: dict[str, str]
    timeout_s: int


@dataclass
class _Hook:
    """The hooks of one volume, or of a schedule, around one cut."""

    what: str
    volumes: list[int]
    thaw: _Call | None
    owed: int | None = None
    trouble: str | None = None
    thawed: bool = False
    """Its thaw command was begun, or need not be."""
    left: int | None = None
    """The process of its quiesce command, if that could not be killed."""
    thread: threading.Thread | None = None
    timer: threading.Timer | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


def checked_hooks(settings: HookSettings) -> Hooks | None:
    """Hooks as the catalog has them; None for none; BadHooks."""
    if settings.quiesce is None:
        if settings.thaw is not None:
            raise BadHooks(why="there is a thaw command, and no quiesce command")
        return None
    if not 1 <= settings.timeout_s <= TIMEOUT_S_MAX:
        raise BadHooks(why=f"a time-out of {settings.timeout_s} s is not from 1 s to {TIMEOUT_S_MAX} s")
    for command in (settings.quiesce, settings.thaw):
        if command is not None and not settings.shell:
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
        self._asked = threading.BoundedSemaphore(AT_A_TIME)
        self._settling: list[threading.Thread] = []

    def settle(self) -> None:
        """At start: run the thaw commands that the last run still owed, without waiting for them."""
        for owed, call in self._context.catalog.schedules.thaws_owed().items():
            assert isinstance(call, dict)
            thaw = _Call(**call)
            text = f"polyvold ended while {thaw.what} was quiesced: its thaw command is run now"
            self._context.events.add("warning", text)
            thread = threading.Thread(
                target=self._run_thaw, args=(thaw, owed), name="polyvol-thaw", daemon=True
            )
            self._settling.append(thread)
            thread.start()

    def stop(self) -> None:
        """Have quiesce commands end now; idempotent."""
        self._stopping.set()
        for thread in self._settling:
            thread.join()

    @contextmanager
    def around(
        self, volumes: Sequence[Volume], name: str | None, group: Group | None, schedule: Schedule | None
    ) -> Iterator[Thaw | None]:
        """Quiesce what has hooks, and have it thawed when the cut is made, at the latest at the end. None if
        nothing has hooks."""
        wanted = self._wanted(volumes, schedule)
        if not wanted:
            yield None
            return
        environment = self._environment(volumes, name, group, schedule)
        done: list[_Hook] = []
        with contextlib.ExitStack() as locks:
            if schedule is None:
                if not self._asked.acquire(blocking=False):
                    raise HooksBusy(count=AT_A_TIME)
                locks.callback(self._asked.release)
            try:
                for key, what, concerned, hooks in wanted:
                    hook = _Hook(what, concerned, _call("thaw", what, hooks.thaw, hooks, environment))
                    done.append(hook)
                    if not self._acquire(locks, key, hooks):
                        hook.trouble, hook.thawed = f"other hooks of {what} do not come to their end", True
                        self._warn(hook)
                        continue
                    self._quiesce(hook, _call("quiesce", what, hooks.quiesce, hooks, environment))
                yield lambda: self._thaw_all(done)
            finally:
                self._thaw_all(done)
                for hook in done:
                    if hook.thread is not None:
                        hook.thread.join()

    def _wanted(
        self, volumes: Sequence[Volume], schedule: Schedule | None
    ) -> list[tuple[tuple[str, int], str, list[int], Hooks]]:
        """Whose hooks are to be run: key, what it is, the volumes that it concerns, and the hooks."""
        catalog = self._context.catalog.schedules
        found = []
        if schedule is not None and (hooks := catalog.schedule_hooks(schedule.id)) is not None:
            ids = [volume.id for volume in volumes]
            found.append((("schedule", schedule.id), f"schedule {schedule.name}", ids, hooks))
        for volume in sorted(volumes, key=lambda each: each.id):
            if (hooks := catalog.volume_hooks(volume.id)) is not None:
                found.append((("volume", volume.id), f"volume {volume.name}", [volume.id], hooks))
        return found

    def _acquire(self, locks: contextlib.ExitStack, key: tuple[str, int], hooks: Hooks) -> bool:
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        if not lock.acquire(timeout=2 * hooks.timeout_s + 2 * _KILLED_WAIT_S):
            return False
        locks.callback(lock.release)  # Q4
        return True

    def _quiesce(self, hook: _Hook, quiesce: _Call | None) -> None:
        assert quiesce is not None, "nobody has hooks without it"
        if hook.thaw is not None:
            try:
                hook.owed = self._context.catalog.schedules.owe_thaw(asdict(hook.thaw))
            except PolyvolError as error:
                hook.trouble, hook.thawed = f"its quiesce command was not run: {error.message}", True
                self._warn(hook)
                return
        began = time.monotonic()
        trouble, hook.left = self._execute(quiesce)
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
        """Begin to thaw what is quiesced still; what the snapshots of a cut that was just made show."""
        marks: dict[int, tuple[Consistency, str | None]] = {}
        for hook in reversed(hooks):
            in_time = self._thaw(hook)
            trouble = None if in_time else f"{hook.what}: {hook.trouble}"
            for volume in hook.volumes:
                if trouble is not None or volume not in marks:
                    marks[volume] = ("application", None) if trouble is None else ("crash", trouble)
        return marks

    def _thaw(self, hook: _Hook) -> bool:
        """Begin to thaw (Q1); whether all was well until now."""
        with hook.lock:
            if hook.thawed:
                return False
            hook.thawed = True
            if hook.timer is not None:
                hook.timer.cancel()
            if hook.thaw is not None and hook.owed is not None:
                hook.thread = threading.Thread(
                    target=self._run_thaw,
                    args=(hook.thaw, hook.owed, hook.left),
                    name="polyvol-thaw",
                    daemon=True,
                )
                hook.thread.start()
            return hook.trouble is None

    def _run_thaw(self, thaw: _Call, owed: int, left: int | None = None) -> None:
        trouble: str | None = None
        for again in (True, False):
            trouble, _ = self._execute(thaw, stoppable=False)
            if trouble is None:
                break
            rest = "it is run once more" if again else "it is owed still, and run when polyvold starts again"
            self._context.events.add("warning", f"the thaw command of {thaw.what} {trouble}; {rest}")
            if self._stopping.is_set():
                return
        if left is not None:  # Q2
            threading.Thread(
                target=self._thaw_again, args=(thaw, owed, left), name="polyvol-thaw-again", daemon=True
            ).start()
        elif trouble is None:
            with contextlib.suppress(PolyvolError):  # else the next start runs it once more
                self._context.catalog.schedules.forget_thaw(owed)

    def _thaw_again(self, thaw: _Call, owed: int, left: int) -> None:
        os.waitpid(left, 0)
        self._run_thaw(thaw, owed)

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

    def _execute(self, call: _Call, *, stoppable: bool = True) -> tuple[str | None, int | None]:
        """Run a command to its end or its time-out (Q2): what went wrong, or None; and its process, if that
        could not be killed."""
        with tempfile.TemporaryFile() as output:
            try:
                pid = _spawn(call, output.fileno())
            except (OSError, ValueError) as error:
                return f"could not be started: {error}", None
            code, left = self._await(pid, call.timeout_s, stoppable)
            output.seek(0)
            said = output.read(_OUTPUT_BYTES_MAX).decode("utf-8", "replace").split("\n")[0].strip()
        if code == 0:
            return None, None
        tail = f": {said}" if said else ""
        if code is None:
            return f"did not end within {call.timeout_s} s and was killed{tail}", left
        return f"ended with {code}{tail}", None

    def _await(self, pid: int, timeout_s: int, stoppable: bool) -> tuple[int | None, int | None]:
        """The exit code of a process, or None if it had to be killed; and its id, if it could not be."""
        end = time.monotonic() + timeout_s
        told = False
        watched = os.pidfd_open(pid)
        try:
            poll = select.poll()
            poll.register(watched, select.POLLIN)
            while not poll.poll(_POLL_S * 1000):
                if self._stopping.is_set() and not told:
                    told = True
                    end = min(end, time.monotonic() + (0.0 if stoppable else _STOPPING_S))
                if time.monotonic() < end:
                    continue
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
                if not poll.poll(_KILLED_WAIT_S * 1000):
                    return None, pid
                os.waitpid(pid, 0)
                return None, None
        finally:
            os.close(watched)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), None


def _check_command(command: str) -> None:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise BadHooks(why=f"{command!r} cannot be taken apart: {error}") from error
    if not words or not words[0].startswith("/"):
        raise BadHooks(why=f"{command!r} does not begin with the absolute path of a program")
    if not os.access(words[0], os.X_OK):
        raise BadHooks(why=f"{words[0]} is not a program that polyvold may run")


def _call(
    stage: str, what: str, command: str | None, hooks: Hooks, environment: dict[str, str]
) -> _Call | None:
    if command is None:
        return None
    arguments = ["/bin/sh", "-c", command] if hooks.shell else shlex.split(command)
    return _Call(what, arguments, {**environment, "POLYVOL_STAGE": stage}, hooks.timeout_s)


def _spawn(call: _Call, output: int) -> int:
    """Start a command: in a session of its own, no signal blocked, output to a file."""
    return os.posix_spawn(
        call.arguments[0],
        call.arguments,
        call.environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, output, 1),
            (os.POSIX_SPAWN_DUP2, output, 2),
        ],
        setsid=True,
        setsigmask=[],
        setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
    )
