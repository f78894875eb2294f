"""test_support: the helpers work, and can fail, on a server that is not ours (nbdkit's memory plugin)."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from polyvol.daemon.state.directory import StateLock
from tests.conftest import shares_turn
from tests.support import fio, forks, fuse, nbd
from tests.support.daemon import BIN
from tests.support.forks import ForkedBackground
from tests.support.proc import Background, check, listens, run
from tests.support.turns import Beside, turn

SIZE_BYTES = 64 * 1024 * 1024


@pytest.fixture
def memory(short_dir: Path) -> Iterator[str]:
    """The address of an export in memory."""
    path = short_dir / "nbd.sock"
    with Background("nbdkit", "-f", "-U", path, "memory", SIZE_BYTES, log=short_dir / "log") as server:
        server.wait_until(lambda: listens(path), "the socket")
        yield nbd.uri("", path)


def alive(pid: int) -> bool:
    """Whether a process is there and not merely waiting to be reaped."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_program_that_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    with pytest.raises(AssertionError, match="took over"):
        run("sh", "-c", f"sleep 60 & echo $! > {told}; wait", timeout_s=0.5)
    child = int(told.read_text())
    deadline = time.monotonic() + 5
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(child)


def test_a_program_that_ends_early_is_told_with_its_words(tmp_path: Path) -> None:
    with (
        Background("sh", "-c", "echo no luck; exit 3", log=tmp_path / "log") as process,
        pytest.raises(AssertionError, match=r"ended with 3 before a wonder:\nno luck"),
    ):
        process.wait_until(lambda: False, "a wonder", 10)


def test_a_failed_check_says_what_was_said() -> None:
    with pytest.raises(AssertionError, match="gave 1:\nbad"):
        check("sh", "-c", "echo bad; exit 1")


def test_clients_see_what_was_written(memory: str) -> None:
    reference = nbd.Reference(SIZE_BYTES)
    with nbd.connect(memory) as handle:
        for offset, data in ((0, b"a" * 4096), (4095, b"bc"), (SIZE_BYTES - 3, b"end")):
            handle.pwrite(data, offset)
            reference.write(data, offset)
        handle.zero(1000, 1000)
        reference.zero(1000, 1000)
        assert sum(length for length, _ in nbd.allocation(handle, SIZE_BYTES, 0)) == SIZE_BYTES
    assert nbd.read_all(memory) == reference.frozen()
    assert nbd.info(memory)["export-size"] == SIZE_BYTES


def test_copy_and_compare(memory: str, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(os.urandom(1024 * 1024) + bytes(SIZE_BYTES - 1024 * 1024))
    nbd.copy(image, memory)
    nbd.qemu_compare(image, memory)
    nbd.qemu_io(memory, "write -P 7 4k 4k")
    with pytest.raises(AssertionError, match="Content mismatch at offset 4096"):
        nbd.qemu_compare(image, memory)


def test_load_is_verified(memory: str, tmp_path: Path) -> None:
    assert fio.load(memory, size="4M")["write"]["total_ios"] == 1024
    with fio.loading(memory, tmp_path / "fio.log", size="4M") as process:
        assert process.pid > 0


def test_a_load_that_fails_is_noticed(memory: str, tmp_path: Path) -> None:
    process: Background
    with (
        pytest.raises(AssertionError),
        fio.loading(memory, tmp_path / "fio.log", size="32M", time_based=1, runtime=30) as process,
    ):
        process.signal(signal.SIGKILL)


def test_a_file_system_on_an_export(memory: str, short_dir: Path) -> None:
    with fuse.block_device(memory, short_dir) as device:
        check("mkfs.ext4", "-q", device)
        with fuse.mount(device, short_dir) as path:
            (path / "file").write_text("here")
        with fuse.mount(device, short_dir, "ro") as path:
            assert (path / "file").read_text() == "here"
        assert not fuse.mounted(short_dir / "fs")
        check("e2fsck", "-fn", device)
    assert "fs" in {entry.name for entry in short_dir.iterdir()}
    assert not fuse.mounted(short_dir / "disk")


def test_turns_let_others_few_or_none_run_beside(tmp_path: Path) -> None:
    def asked(directory: Path, leave: threading.Event) -> threading.Event:
        began = threading.Event()

        def body() -> None:
            with turn(directory, places=4, beside="others"):
                began.set()
                leave.wait(20)

        threading.Thread(target=body, daemon=True).start()
        return began

    rules: list[tuple[Beside, int]] = [("others", 3), ("few", 1), ("alone", 0)]
    for beside, count in rules:
        directory, leave = tmp_path / beside, threading.Event()
        with turn(directory, places=4, beside=beside):
            begun = [asked(directory, leave) for _ in range(4)]
            time.sleep(0.5)
            assert sum(each.is_set() for each in begun) == count, beside
        leave.set()
        assert all(each.wait(10) for each in begun)


def test_only_tests_that_are_alone_share_a_turn(request: pytest.FixtureRequest) -> None:
    node = request.node
    assert not shares_turn(node, node)
    node.add_marker("alone")
    assert shares_turn(node, node)
    assert not shares_turn(node, None)


@pytest.mark.parametrize("words", [["--version"], ["volume", "--help"], ["volume", "nonsense"], ["status"]])
def test_a_forked_program_does_what_the_installed_one_does(short_dir: Path, words: list[str]) -> None:
    env = {"POLYVOL_STATE": str(short_dir / "nothing")}
    assert forks.run("polyvol", *words, env=env) == run(BIN / "polyvol", *words, env=env)


def test_a_forked_program_has_a_session_of_its_own_and_its_end_is_told(short_dir: Path) -> None:
    log = short_dir / "log"
    for number in (signal.SIGKILL, signal.SIGTERM):
        state_dir = short_dir / number.name
        with ForkedBackground("polyvold", "--state-dir", state_dir, log=log) as process:
            process.wait_until(lambda: "ready" in log.read_text(), "polyvold's start")
            assert os.getsid(process.pid) == process.pid
            assert Path(f"/proc/{process.pid}/comm").read_text() == "polyvold\n"
            assert process.rc is None
            process.signal(number)
            assert process.wait() == (-number if number == signal.SIGKILL else 0)
        log.unlink()


def test_a_forked_program_that_takes_too_long_is_ended(short_dir: Path) -> None:
    with pytest.raises(AssertionError, match="polyvold took over 2"):
        forks.run("polyvold", "--state-dir", short_dir / "state", timeout_s=2)
    StateLock(short_dir / "state").release()  # nobody has it


def test_a_forked_program_gets_what_is_passed_to_it(short_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(short_dir / "passed.sock"))
        listener.listen()
        env = {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "control"}
        words = ("--state-dir", short_dir / "state")
        log = short_dir / "log"
        with ForkedBackground("polyvold", *words, log=log, env=env, passed=[listener.fileno()]) as process:
            process.wait_until(lambda: "ready" in log.read_text(), "polyvold's start")
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(short_dir / "passed.sock"))
                client.sendall(b"GET /v1/status HTTP/1.0\r\n\r\n")
                assert client.recv(15).startswith(b"HTTP/1.")
