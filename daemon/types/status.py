"""The daemon, events, verbs under way, what `polyvol check` found. Sizes, offsets and lengths are bytes."""

from dataclasses import dataclass
from typing import Literal

from polyvol.daemon.types.devices import DeviceView
from polyvol.daemon.types.volumes import VolumeView
from polyvol.daemon.version import Build


@dataclass(frozen=True, kw_only=True)
class EventView:
    """Something that has happened; `volume`: to which one, if to one."""

    time: str
    level: Literal["info", "warning"]
    volume: str | None
    text: str


@dataclass(frozen=True, kw_only=True)
class DaemonView:
    """The daemon itself. `nbd`: the NBD URIs that it serves."""

    pid: int
    version: str
    build: Build
    state_dir: str
    frontend: str
    nbd: list[str]
    processors: int
    started: str
    uptime_s: float
    connections: int


@dataclass(frozen=True, kw_only=True)
class OperationView:
    """A verb under way: what it does to which volumes, or to which devices, since when, and how many others
    wait for these."""

    what: str
    volumes: list[str]
    devices: list[str]
    since: str
    seconds: float
    waiting: int


@dataclass(frozen=True, kw_only=True)
class StatusView:
    """Everything at a glance, with the latest events, oldest first. `notes`: what is odd, a sentence each.
    `operations`: the verbs under way, the oldest first."""

    daemon: DaemonView
    volumes: list[VolumeView]
    devices: list[DeviceView]
    notes: list[str]
    operations: list[OperationView]
    events: list[EventView]


@dataclass(frozen=True, kw_only=True)
class CheckVolumeView:
    """A volume as a check found it: slots in use, records behind its checkpoints, bytes of slots read and
    checked."""

    name: str
    partitions: int
    snapshots: int
    slots: int = 0
    records: int = 0
    checked: int = 0


@dataclass(frozen=True, kw_only=True)
class CheckView:
    """What a check found: `problems` are wrong, `notes` are what a crash leaves and the next start
    settles."""

    state_dir: str
    problems: list[str]
    notes: list[str]
    volumes: list[CheckVolumeView]
    devices: int
