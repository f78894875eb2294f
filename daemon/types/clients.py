"""Clients. Sizes, offsets and lengths are bytes."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ClientView:
    """A connection. `export`: what it is connected to; for a `restore` the volume that it writes. `peer`: who
    it is, in words. `address`: of a client on the network; `pid`, `user`: of the local process that has
    connected, as far as it can be seen. `in_flight`: requests without an answer yet; `received` and `sent`:
    bytes, counted like `since` from when this polyvold has the connection (under nbdkit: bytes of data)."""

    id: int
    export: str
    restore: bool
    read_only: bool
    peer: str
    address: str | None
    pid: int | None
    user: str | None
    since: str
    in_flight: int
    received: int
    sent: int
