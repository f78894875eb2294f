"""Fixtures that several files here share."""

from collections.abc import Callable, Iterator

import pytest

from tests.clients.attached import Host
from tests.support.daemon import Daemon


@pytest.fixture
def host(make_daemon: Callable[..., Daemon]) -> Iterator[Host]:
    """A daemon with a volume `v` of 64 MiB, and a host that nothing is left on at the end."""
    daemon = make_daemon()
    daemon.make_volume("v", size="64M")
    host = Host(daemon)
    yield host
    host.clean()
    assert host.left() == []


@pytest.fixture
def nbdkit(make_daemon: Callable[..., Daemon]) -> Daemon:
    """A daemon behind nbdkit with one volume."""
    daemon = make_daemon("--frontend", "nbdkit")
    daemon.make_volume("v", size="8M", partition_size="1M")
    return daemon
