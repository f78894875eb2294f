"""Programs of the system: run to their end, with a bound on the time.

Errors            NotRun; an exit status is the caller's to judge.
"""

import subprocess
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from polyvol.mapping.os_errors import reason


class NotRun(Exception):
    """A program could not be started, or did not end in time; its text says which, as a clause."""


def run_program(
    command: Sequence[str | Path],
    *,
    timeout_s: float,
    late: str = "it took too long",
    env: Mapping[str, str] | None = None,
    pass_fds: Collection[int] = (),
) -> "subprocess.CompletedProcess[str]":
    """Run a program with an empty standard input, and have its output. After `timeout_s` it is killed, and
    NotRun says `late`. `env`: its environment, else that of this process."""
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=env,
            timeout=timeout_s,
            pass_fds=pass_fds,
            check=False,
        )
    except OSError as error:
        raise NotRun(reason(error)) from error
    except subprocess.TimeoutExpired as error:
        raise NotRun(late) from error
