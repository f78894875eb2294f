"""Settings of a block device, as the kernel's NBD client takes them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    """Of a block device: `size` and `block_size` in bytes; `flags` are NBD's transmission flags; `backend` is
    shown in sysfs; how long, in seconds, a request may go unanswered and a device be without a connection
    before I/O fails."""

    size: int
    flags: int
    block_size: int
    backend: str
    timeout_s: int
    dead_timeout_s: int
