"""The unit polyvol-attach@NAME.service: started and enabled when a volume is attached, the reverse later.

How it works      `systemctl`. The instance is the name as it is: every character of a volume's and a
                  snapshot's name may stand in a unit's, so nothing is escaped.
Errors            AttachFailed, ProgramFailed.
"""

import subprocess
from pathlib import Path

from polyvol.daemon.client.attach.errors import AttachFailed, ProgramFailed
from polyvol.mapping.programs import NotRun, run_program

TEMPLATE = "polyvol-attach@.service"
START_S = 150.0
STOP_S = 90.0
QUERY_S = 20.0


def unit(name: str) -> str:
    """The unit that supervises this name."""
    return f"polyvol-attach@{name}.service"


def available() -> bool:
    """Whether systemd runs here and knows the unit."""
    if not Path("/run/systemd/system").is_dir():
        return False
    return _systemctl("cat", TEMPLATE, timeout_s=QUERY_S).returncode == 0


def active(name: str) -> bool:
    """Whether the unit of this name runs or is starting."""
    state = _systemctl("show", "--property=ActiveState", "--value", unit(name), timeout_s=QUERY_S).stdout
    return state.strip() in ("active", "activating", "reloading")


def shutting_down() -> bool:
    """Whether systemd is shutting down."""
    return Path("/run/systemd/system").is_dir() and (
        _systemctl("is-system-running", timeout_s=QUERY_S).stdout.strip() == "stopping"
    )


def start(name: str) -> None:
    """Attach it now and at every boot; AttachFailed, with the unit's reason, if that fails."""
    _systemctl("reset-failed", unit(name), timeout_s=QUERY_S)
    done = _systemctl("enable", "--now", "--quiet", unit(name), timeout_s=START_S)
    if done.returncode != 0:
        status = _systemctl("show", "--property=StatusText", "--value", unit(name), timeout_s=QUERY_S)
        lines = done.stderr.strip().splitlines()
        why = status.stdout.strip() or (lines[0] if lines else f"systemctl ended with {done.returncode}")
        _systemctl("disable", "--now", "--quiet", unit(name), timeout_s=STOP_S)
        raise AttachFailed(name=name, why=why)


def stop(name: str) -> None:
    """Stop it, and do not start it at the next boot."""
    done = _systemctl("disable", "--now", "--quiet", unit(name), timeout_s=STOP_S)
    if done.returncode != 0:
        raise ProgramFailed(program="systemctl", why=done.stderr.strip() or f"status {done.returncode}")


def _systemctl(*arguments: str, timeout_s: float) -> "subprocess.CompletedProcess[str]":
    try:
        command = ["systemctl", "--no-ask-password", *arguments]
        return run_program(command, timeout_s=timeout_s, late=f"it took over {timeout_s:.0f} s")
    except NotRun as error:
        raise ProgramFailed(program="systemctl", why=error) from error
