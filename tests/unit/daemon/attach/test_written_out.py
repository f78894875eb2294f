"""A detach of a device whose data cannot be written is refused, again and again, and says why."""

import errno
import os
from pathlib import Path

import pytest

from polyvol.daemon.client.attach import disks, fuse, verbs
from polyvol.daemon.client.attach.errors import NotWritten
from polyvol.daemon.client.attach.records import Attached, Places


class Host:
    """One device that is attached, `v` at nbd0, on a host that is made up."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.places = Places(root)
        self.ended: list[bool] = []
        (root / "nodes").mkdir()
        (root / "nodes/nbd0").touch()
        self.places.write(Attached(name="v", device="nbd0", kind="nbd", size=4096, flags=0))
        monkeypatch.setattr(disks, "DEV", root / "nodes")
        monkeypatch.setattr(verbs, "find", lambda places, name: places.now(name))
        monkeypatch.setattr(verbs, "users_of", lambda _: [])
        monkeypatch.setattr(verbs, "_refuse_used", lambda *_: None)
        monkeypatch.setattr(verbs, "_end", lambda *_, force: self.ended.append(force))
        monkeypatch.setattr(fuse, "trouble", lambda *_: None)

    def detach(self, *, force: bool = False) -> verbs.Detached:
        return verbs._detach(self.places, "v", force=force)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def test_a_sync_that_fails_refuses_the_detach_and_is_remembered(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as broken:
        # The record itself is written by fsync too.
        written = Attached(name="v", device="nbd0", kind="nbd", size=4096, flags=0)
        broken.setattr(host.places.__class__, "write", lambda *_: None)
        broken.setattr(os, "fsync", fails)
        with pytest.raises(NotWritten) as refused:
            host.detach()
    assert "/dev/nbd0" in refused.value.message
    assert host.ended == []
    assert host.places.now("v") == written
    # The kernel tells of it once: what is recorded refuses the next detach, though a sync would succeed now.
    lost = str(refused.value.facts["why"])
    host.places.write(Attached(name="v", device="nbd0", kind="nbd", size=4096, flags=0, lost=lost))
    with pytest.raises(NotWritten, match=lost):
        host.detach()
    assert host.ended == []
    assert host.detach(force=True).device == "nbd0"
    assert host.ended == [True]


def test_a_sync_that_succeeds_lets_it_go(host: Host) -> None:
    assert host.detach().name == "v"
    assert host.ended == [False]
    assert host.places.now("v") is None
