"""What one daemon tells the next: whole or refused, and what the next one closes."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, strategies as st

from polyvol.daemon import hand_over
from polyvol.daemon.hand_over import Entry, Unusable, pack, unpack
from polyvol.daemon.host import notify
from polyvol.daemon.host.sockets import InheritedSockets, inherited_from_systemd

ENTRIES = st.lists(
    st.builds(Entry, st.integers(0, 2**32 - 1), st.uuids(), st.binary(max_size=200)), max_size=5
)
SAMPLE = [Entry(1, UUID(int=7), b"state"), Entry(2, UUID(int=8), b"")]


@given(entries=ENTRIES, frozen_ns=st.integers(0, 2**64 - 1))
def test_what_was_packed_is_unpacked_to_the_same(entries: list[Entry], frozen_ns: int) -> None:
    assert unpack(pack(entries, frozen_ns)) == (frozen_ns, entries)


def test_whatever_is_cut_off_or_changed_is_refused() -> None:
    data = pack(SAMPLE, 5)
    for end in range(len(data)):
        with pytest.raises(Unusable):
            unpack(data[:end])
    for at in range(len(data)):
        other = bytearray(data)
        other[at] ^= 1 << at % 8
        with pytest.raises(Unusable):
            unpack(bytes(other))


@given(junk=st.binary(max_size=300))
def test_anything_with_a_right_checksum_is_read_or_refused(junk: bytes) -> None:
    covered = junk
    data = hand_over.MAGIC + (1).to_bytes(4, "little") + hand_over._crc32c(covered).to_bytes(4, "little")
    try:
        frozen_ns, entries = unpack(data + covered)
    except Unusable:
        return
    assert pack(entries, frozen_ns) == data + covered


def test_the_page_has_every_field_at_its_offset() -> None:
    page = (Path(__file__).parents[3] / "docs/formats-hand-over.md").read_text()
    rows = ["|".join(part.strip() for part in line.split("|")) for line in page.splitlines()]
    tables = {
        hand_over._HEADER.size: [
            ("magic", 8), ("version", 4), ("crc", 4), ("frozen_ns", 8), ("count", 4), ("reserved", 4)
        ],
        hand_over._ENTRY.size: [("number", 4), ("state_bytes", 4), ("uuid", 16)],
    }  # fmt: skip
    for size, fields in tables.items():
        offset = 0
        for name, length in fields:
            assert any(row.startswith(f"|{name}|{offset}|{length}|") for row in rows), name
            offset += length
        assert offset == size


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch, short_dir: Path) -> Iterator[socket.socket]:
    """A notification socket of a manager that keeps descriptors."""
    path = short_dir / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(path))
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        monkeypatch.setenv("FDSTORE", "16")
        yield heard


def test_a_store_is_offered_only_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for address, most, offered in [
        ("/s", "1", True),
        ("@s", "1", True),
        ("/s", "0", False),
        ("/s", "x", False),
    ]:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        monkeypatch.setenv("FDSTORE", most)
        store = notify.Store.offered()
        assert (store is not None) == offered
        if store is not None:
            store.__exit__()
    monkeypatch.delenv("NOTIFY_SOCKET")
    assert notify.Store.offered() is None


def test_what_is_put_arrives_by_its_name_and_a_barrier_is_waited_for(manager: socket.socket) -> None:
    store = notify.Store.offered()
    assert store is not None
    reading, writing = os.pipe()
    with store:
        store.put("connection-3", writing)
        text, numbers, _, _ = socket.recv_fds(manager, 100, 4)
        assert (text, len(numbers)) == (b"FDSTORE=1\nFDNAME=connection-3", 1)
        os.write(numbers[0], b"!")
        assert os.read(reading, 1) == b"!"
        assert not store.settle(0.05)  # nobody has read the barrier
        text, barrier, _, _ = socket.recv_fds(manager, 100, 4)
        assert text == b"BARRIER=1"
    for number in [reading, writing, *numbers, *barrier]:
        os.close(number)


def test_what_was_handed_over_is_told_from_listening_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a child of its own, as descriptors from 3 on are somebody else's here."""
    child = os.fork()
    if child == 0:
        try:
            kept = [os.open("/dev/null", os.O_RDONLY) for _ in range(2)]
            for wanted, number in enumerate(kept, 3):
                os.dup2(number, wanted)
            monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
            monkeypatch.setenv("LISTEN_FDS", "2")
            monkeypatch.setenv("LISTEN_FDNAMES", "connection-7:hand-over")
            passed = inherited_from_systemd()
            good = passed.handed == {"connection-7": 3, "hand-over": 4} and passed.nbd == []
            passed.close()
            os._exit(0 if good and passed.handed == {} else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_what_cannot_be_taken_over_is_shut_down_and_no_longer_kept(manager: socket.socket) -> None:
    ours, theirs = socket.socketpair()
    handed = {"connection-1": ours.detach(), "hand-over": os.memfd_create("x")}
    devices = {"some-uuid": os.memfd_create("y")}
    with theirs:
        kept = os.dup(handed["connection-1"])  # as the manager has one
        hand_over.discard(InheritedSockets(handed=handed, devices=devices))
        assert theirs.recv(1) == b""
        os.close(kept)
    assert handed == {}
    assert devices == {}
    told = {manager.recv(100) for _ in range(3)}
    names = ("connection-1", "hand-over", "device-some-uuid")
    assert told == {f"FDSTOREREMOVE=1\nFDNAME={name}".encode() for name in names}
