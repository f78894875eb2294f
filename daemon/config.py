"""Settings of polyvold: from its options, else the configuration file, else the environment, else defaults.

How it works      The file is TOML; its keys are the options' names. Everything is checked before anything
                  starts.
Errors            BadConfig.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from polyvol.daemon.errors import BadConfig
from polyvol.daemon.host.sockets import split_address
from polyvol.daemon.state.directory import default_state_dir
from polyvol.mapping.os_errors import reason
from polyvol.mapping.plans.placement import PROCESSORS_MAX
from polyvol.mapping.sizes import format_size

Frontend = Literal["native", "nbdkit"]
FILE_BYTES_MAX = 1 << 20
FRONTENDS: tuple[Frontend, ...] = ("native", "nbdkit")
_TYPES: dict[str, type] = {
    "state-dir": str,
    "nbd-socket": str,
    "nbd-listen": str,
    "processors": int,
    "frontend": str,
    "io-timeout": int,
}
IO_TIMEOUT_S = 60
IO_TIMEOUT_MAX_S = 86_400


@dataclass(frozen=True, slots=True)
class Config:
    """What polyvold is started with; None: the default that docs/operating.md names."""

    state_dir: Path
    nbd_socket: Path | None = None
    nbd_listen: str | None = None
    processors: int | None = None
    frontend: Frontend = "native"
    io_timeout_s: int = IO_TIMEOUT_S


def load_config(file: Path | None, options: Mapping[str, object]) -> Config:
    """The settings; `options` has those given on the command line, by name, None where not given."""
    values = _read(file) if file is not None else {}
    values |= {name: value for name, value in options.items() if value is not None}
    where = str(file) if file is not None else "polyvold"
    frontend = values.get("frontend", "native")
    if frontend not in FRONTENDS:
        raise BadConfig(where=where, why=f"frontend is {frontend!r}, and can be {' or '.join(FRONTENDS)}")
    processors = cast(int | None, values.get("processors"))
    if processors is not None and not 1 <= processors <= PROCESSORS_MAX:
        raise BadConfig(where=where, why=f"processors is {processors}, and can be 1 to {PROCESSORS_MAX}")
    timeout = cast(int, values.get("io-timeout", IO_TIMEOUT_S))
    if not 0 <= timeout <= IO_TIMEOUT_MAX_S:
        why = f"io-timeout is {timeout}, and can be 1 to {IO_TIMEOUT_MAX_S} (seconds), or 0 for no limit"
        raise BadConfig(where=where, why=why)
    listen = cast(str | None, values.get("nbd-listen"))
    if listen is not None:
        split_address(listen)
    state_dir = _path(where, "state-dir", values.get("state-dir", str(default_state_dir())))
    nbd_socket = values.get("nbd-socket")
    return Config(
        state_dir=state_dir,
        nbd_socket=None if nbd_socket is None else _path(where, "nbd-socket", nbd_socket),
        nbd_listen=listen,
        processors=processors,
        frontend=frontend,
        io_timeout_s=timeout,
    )


def _path(where: str, key: str, value: object) -> Path:
    if not value or "\0" in str(value):
        raise BadConfig(where=where, why=f"{key} is {value!r}, which is no path")
    try:
        return Path(str(value)).absolute()
    except FileNotFoundError as error:  # the working directory was removed
        why = f"{key} is relative, and there is no working directory any more"
        raise BadConfig(where=where, why=why) from error


def _read(file: Path) -> dict[str, object]:
    try:
        with file.open("rb") as opened:
            data = opened.read(FILE_BYTES_MAX + 1)
        if len(data) > FILE_BYTES_MAX:
            raise BadConfig(where=file, why=f"it is longer than {format_size(FILE_BYTES_MAX)}")
        values = tomllib.loads(data.decode())
    except OSError as error:
        raise BadConfig(where=file, why=f"it cannot be read ({reason(error, file)})") from error
    except UnicodeDecodeError as error:
        raise BadConfig(where=file, why=f"it is not UTF-8 at byte {error.start}") from error
    except tomllib.TOMLDecodeError as error:
        raise BadConfig(where=file, why=f"it is not TOML: {error}") from error
    for key, value in values.items():
        if key not in _TYPES:
            raise BadConfig(where=file, why=f"there is no setting {key!r}; there are {', '.join(_TYPES)}")
        if type(value) is not _TYPES[key]:
            kind = "a number" if _TYPES[key] is int else "a string"
            raise BadConfig(where=file, why=f"{key} has to be {kind}")
    return values
