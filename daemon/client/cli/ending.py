"""How a program ends: the one place where exceptions become sentences and exit codes.

How it works      `ended` runs a command and gives its exit code. An error becomes one line on stderr: what is
                  wrong, and after a semicolon what to do. With --json it is one line of JSON there, with the
                  body that the control API has: {"error": {"code", "message", "hint"}}. Nothing is printed on
                  the standard output then. A defect of polyvol is printed with its place in the source; a
                  traceback is printed only if $POLYVOL_TRACEBACK is set.
Exit codes        0: done; 1: refused or failed; 2: not written as --help says; 130: interrupted (SIGINT);
                  141: the reader of the output has ended.
Errors            None; SystemExit of the command itself passes through.
"""

import errno
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from polyvol.daemon.client.cli.client import ApiError, latest_answer
from polyvol.daemon.errors import (
    EXIT_CODE,
    EXIT_INTERRUPTED,
    EXIT_PIPE,
    EXIT_USAGE,
    CommandDefect,
    DaemonVersion,
    OutputFailed,
    SystemRefused,
    UsageWrong,
)
from polyvol.daemon.version import version
from polyvol.mapping.errors import PolyvolError
from polyvol.mapping.os_errors import advice, as_clause, reason

TRACEBACK = "POLYVOL_TRACEBACK"
_SOURCE = Path(__file__).resolve().parents[3]


def ended(run: Callable[[], object], program: str, arguments: Sequence[str]) -> int:
    """Run a command; its exit code, after its error was printed. `arguments`: its own, which say whether
    errors are JSON."""
    code = 0
    try:
        try:
            found = run()
            code = found if isinstance(found, int) else 0
        except SystemExit as leave:
            code = leave.code if isinstance(leave.code, int) else EXIT_CODE
        _flush()
    except BaseException as error:
        code = _told(error, program, as_json="--json" in _before_dashes(arguments))
    return code


class _Ending(click.Command):
    """A command of click whose errors end the program as this file says."""

    def main(  # type: ignore[override]  # it never returns
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        **extra: Any,  # noqa: ANN401
    ) -> NoReturn:
        """Run the command and exit."""
        arguments = list(sys.argv[1:] if args is None else args)
        program = prog_name or "polyvol"
        if f"_{program.upper()}_COMPLETE" in os.environ:  # a shell requests completions
            super().main(arguments, program, **extra)
        sys.exit(ended(lambda: self._run(program, list(arguments)), program, arguments))

    def _run(self, program: str, arguments: list[str]) -> int:
        """As click's own `main`, which would end the program itself if an output is closed."""
        given = list(arguments)
        try:
            with self.make_context(program, arguments) as context:
                self.invoke(context)
        except click.exceptions.Exit as leave:
            return leave.exit_code
        except click.UsageError as error:
            if error.ctx is None:  # click's parser does not name the command
                error.ctx = _context_of(self, program, given)
            raise
        return 0


class Command(_Ending):
    """A program with one command."""


class Group(_Ending, click.Group):
    """A program with many commands."""


def _context_of(command: click.Command, program: str, arguments: Sequence[str]) -> click.Context:
    """The context of the command that the arguments name; options before it are passed over."""
    context = click.Context(command, info_name=program)
    words = iter(arguments)
    for word in words:
        if not isinstance(command, click.Group):
            break
        if word.startswith("-"):
            option = next((each for each in command.params if word in each.opts), None)
            if isinstance(option, click.Option) and not option.is_flag:
                next(words, None)  # its value
            continue
        found = command.get_command(context, word)
        if found is None:
            break
        command = found
        context = click.Context(command, parent=context, info_name=command.name)
    return context


def error_body(error: PolyvolError | ApiError) -> dict[str, dict[str, str]]:
    """An error as JSON."""
    return {"error": {"code": error.code, "message": error.message, "hint": error.advice}}


def as_error(error: BaseException, program: str) -> PolyvolError | ApiError:
    """Any exception as an error that has a sentence."""
    if isinstance(error, PolyvolError | ApiError):
        return error
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        command = program if context is None else context.command_path
        return UsageWrong(what=_elsewhere(error) or _clause(error.format_message()), command=command)
    if isinstance(error, MemoryError):
        error = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    if isinstance(error, RuntimeError) and "start new thread" in str(error):  # raised by Python
        why = "the limits on memory or on processes allow no more"
        todo = "raise them (`ulimit -v`, `ulimit -u`), or end other programs"
        return SystemRefused(what="starting a thread", why=why, todo=todo)
    if isinstance(error, ImportError) and error.name is not None:
        why = f"its module {error.name} cannot be loaded"
        todo = "check that it is installed completely, and that its limits (`ulimit -a`) are high enough"
        return SystemRefused(what=program, why=why, todo=todo)
    if isinstance(error, OSError) and error.errno is not None:
        if error.errno == errno.ENOENT and error.filename is None and not _has_working_directory():
            todo = "change to another directory"
            return SystemRefused(what="using the working directory", why="it was deleted", todo=todo)
        if any(frame.name == "echo" for frame in traceback.extract_tb(error.__traceback__)):
            return OutputFailed(why=reason(error), todo=advice(error))  # click itself prints help
        path = error.filename if isinstance(error.filename, str | bytes | os.PathLike) else None
        what = program if path is None else f"using {os.fsdecode(path)}"
        why = reason(error, None if path is None else os.fsdecode(path))
        return SystemRefused(what=what, why=why, todo=advice(error))
    return _version_differs() or CommandDefect(program=program, where=_where(error))


def _has_working_directory() -> bool:
    try:
        os.getcwd()  # noqa: PTH109 - a path object would not fail
    except FileNotFoundError:
        return False
    return True


def _version_differs() -> PolyvolError | None:
    """The error if polyvold has another version, which may be why its answer was not understood."""
    latest = latest_answer()
    if latest is None or latest[1] == version():
        return None
    why = "its answer was not understood"
    return DaemonVersion(state=latest[0], theirs=latest[1] or "unknown", ours=version(), why=why)


def tell(error: PolyvolError | ApiError, *, as_json: bool) -> None:
    """Print an error on stderr, in one line."""
    from polyvol.daemon.client.cli.output import visible

    _print(json.dumps(error_body(error)) if as_json else visible(str(error)))


def _told(error: BaseException, program: str, *, as_json: bool) -> int:
    """Print an exception; the exit code."""
    if isinstance(error, KeyboardInterrupt | click.Abort):
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one ends the cleanup
        _silence()
        return EXIT_INTERRUPTED
    if isinstance(error, BrokenPipeError):
        _silence()
        return EXIT_PIPE
    if os.environ.get(TRACEBACK):
        traceback.print_exception(error)
    told = as_error(error, program)
    _silence(only_output=isinstance(told, OutputFailed))
    if type(error).__name__ == "NoArgsIsHelpError" and not as_json:
        _print(error.format_message())  # type: ignore[attr-defined]  # of click 8.2 and newer: the help
    else:
        tell(told, as_json=as_json)
    return EXIT_USAGE if isinstance(error, click.UsageError) else EXIT_CODE


def _print(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        discard(sys.stderr)


def _flush() -> None:
    """Flush the standard output, so that a failure is reported."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:
        raise OutputFailed(why=reason(error), todo=advice(error)) from error


def _silence(*, only_output: bool = False) -> None:
    """Keep the interpreter from writing at its end, because it would print an error."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        discard(sys.stdout)
    if only_output:
        discard(sys.stdout)


def discard(stream: object) -> None:
    """Discard what a stream has buffered, and all later output."""
    try:
        number = stream.fileno()  # type: ignore[attr-defined]
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)
    except (OSError, ValueError, AttributeError):
        pass


def _before_dashes(arguments: Sequence[str]) -> Sequence[str]:
    return arguments[: arguments.index("--")] if "--" in arguments else arguments


def _clause(text: str) -> str:
    """A sentence of click's as a clause on one line."""
    text = re.sub(r"\. \(?Did you mean( one of)?:?", r": did you mean\1", " ".join(text.split()))
    text = text.removesuffix("?)").rstrip(".?")
    return text if text[:2].isupper() else as_clause(text)


def _elsewhere(error: click.ClickException) -> str:
    """The hint for a word that is a command elsewhere: `polyvol rollback` may mean `polyvol snapshot
    rollback`. Empty if no command has exactly that name, or too many have; click then names similar ones."""
    if not isinstance(error, click.exceptions.NoSuchCommand) or error.ctx is None:
        return ""
    root = error.ctx.find_root()
    groups = [(root.info_name, root.command)]
    if isinstance(root.command, click.Group):
        groups += [(f"{root.info_name} {name}", each) for name, each in root.command.commands.items()]
    found = [
        f"`{path} {error.command_name}`"
        for path, group in groups
        if isinstance(group, click.Group) and error.command_name in group.commands
    ]
    if not 1 <= len(found) <= 2:
        return ""
    return f"no such command {error.command_name!r}: did you mean {' or '.join(found)}"


def _where(error: BaseException) -> str:
    """The place in polyvol's source where an exception was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        path = Path(frame.filename).resolve()
        if path.is_relative_to(_SOURCE) and "site-packages" not in path.relative_to(_SOURCE).parts:
            return f"{path.relative_to(_SOURCE)}, line {frame.lineno}"
    return f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else "an unknown place"
