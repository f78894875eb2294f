"""How polyvol and polyvold end: each exception is one sentence and an exit code, whatever is broken."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click
import pytest

from polyvol.daemon.client.cli import unreachable
from polyvol.daemon.client.cli.client import ApiError, Client
from polyvol.daemon.client.cli.ending import ended
from polyvol.daemon.errors import DaemonNotRunning, DaemonUnreachable, DaemonVersion, NotText
from polyvol.mapping.errors import FACT_LENGTH_MAX, BadName, UnknownVolume
from polyvol.mapping.os_errors import reason
from tests.support.daemon import short_directory
from tests.unit.conftest import Daemon

BIN = Path(sys.executable).parent
HEAD = b"HTTP/1.1 %s\r\nServer: polyvold\r\n\r\n"


@pytest.fixture
def state() -> Iterator[Path]:
    with short_directory() as path:
        yield path


@contextmanager
def answering(state: Path, answer: bytes | None) -> Iterator[None]:
    """Something that listens on the control socket and answers each request with these bytes; None: never."""
    done = threading.Event()

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                if answer is None:
                    done.wait(20)
                else:
                    connection.sendall(answer)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(state / "control.sock"))
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            done.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            (state / "control.sock").unlink()


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UnknownVolume(name="x"), 1, "there is no volume 'x'; "),
        (ApiError("c", "said", "do"), 1, "said; do"),
        (click.UsageError("Wrong."), 2, "wrong; `prog --help` shows the usage"),
        (
            OSError(errno.ENOSPC, "x", "/nix/y"),
            1,
            "using /nix/y failed: no space left on its file system; ",
        ),
        (OSError(errno.EFBIG, "x"), 1, "it would become larger than a file may be here; use"),
        (MemoryError(), 1, "not enough memory"),
        (KeyError("x"), 1, "internal error in prog (tests/unit/daemon/test_cli_ending.py, line "),
        (RecursionError("x"), 1, "internal error in prog ("),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(), 141, ""),
    ],
)
def test_every_exception_ends_in_one_line(
    error: BaseException, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    for arguments in ([], ["--json"], ["--", "--json"]):
        assert ended(fail, "prog", arguments) == code
        said = capsys.readouterr().err
        assert said.count("\n") == (1 if words else 0)
        assert "Traceback" not in said
        if words and arguments == ["--json"]:
            assert json.loads(said)["error"]["code"]
        else:
            assert words in said
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_long_name_does_not_make_a_sentence_endless() -> None:
    error = BadName(noun="volume", name="x" * 5000)
    assert len(str(error)) < FACT_LENGTH_MAX + 250
    assert "(5000 characters)" in str(error)


@pytest.mark.parametrize(
    "answer",
    [
        b"", b"garbage\n", b"\0\xff" * 999, b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\n\r\n{}",
        HEAD % b"200 OK" + b"{",
        HEAD % b"500 no" + b"oh no", HEAD % b"500 no" + b"{}", HEAD % b"500 no" + b'{"error": 1}',
        (HEAD % b"200 OK").replace(b"\r\n\r\n", b"\r\nContent-Length: 9\r\n\r\n{}"),
    ],
)  # fmt: skip
def test_who_answers_wrongly_is_told_in_a_sentence(state: Path, answer: bytes) -> None:
    with answering(state, answer), pytest.raises(DaemonUnreachable):
        Client(state).get("status")
    with answering(state, answer), pytest.raises(DaemonUnreachable) as caught:
        Client(state).post("volumes", body={})
    assert ("may have been done" in str(caught.value)) == ("is not polyvold" not in str(caught.value))


def test_an_answer_that_never_comes_is_not_waited_for_when_nothing_changes(state: Path) -> None:
    with answering(state, None), pytest.raises(DaemonUnreachable, match="has not answered"):
        Client(state, read_s=0.2).get("status")


def test_an_old_polyvold_is_told_from_a_wrong_request(state: Path) -> None:
    body = b'{"error": {"code": "bad-request", "message": "no", "hint": ""}}'
    with answering(state, HEAD % b"400 no" + body), pytest.raises(DaemonVersion, match="version unknown"):
        Client(state).get("status")


def test_what_is_in_the_sockets_place_is_named(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sock = state / "control.sock"

    def refused(path: Path = state) -> str:
        with pytest.raises((DaemonNotRunning, DaemonUnreachable)) as caught:
            Client(path).get("status")
        return str(caught.value)

    assert "it has no control socket; start it with `polyvold --state-dir" in refused()
    assert "there is no such directory; give --state-dir" in refused(state / "none")
    sock.write_text("x")
    assert f"{sock} is not a socket; move it away" in refused()
    assert "it is not a directory" in refused(sock)
    sock.unlink()
    sock.symlink_to("control.sock")
    assert "too many symbolic links" in refused()
    sock.unlink()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(sock))
    assert "nobody listens on its control socket" in refused()
    assert "longer than 107 bytes; give a shorter --state-dir" in refused(state / ("x" * 200))
    monkeypatch.setattr(unreachable, "DEFAULT_STATE_DIR", str(state))
    monkeypatch.setattr(unreachable, "UNIT_DIRS", (str(state),))
    (state / unreachable.UNIT).touch()
    assert "systemctl start polyvol" in refused()
    assert "polyvold --state-dir" not in refused()


def test_a_polyvold_that_starts_or_ends_is_not_called_stopped(state: Path) -> None:
    lock = state / "lock"
    lock.write_text(f"{os.getpid()}\n")
    with pytest.raises(DaemonNotRunning):  # the pid is of a process that has ended, and is another one's now
        Client(state).get("status")
    with lock.open(), pytest.raises(DaemonUnreachable, match=f"starting or ending .pid {os.getpid()}.; wait"):
        Client(state).get("status")
    lock.write_text("")
    with lock.open(), pytest.raises(DaemonNotRunning):
        Client(state).get("status")


def test_a_device_that_hangs_in_a_daemon_that_ends_does_not_hang_who_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `stat` of what such a daemon has open may never return."""
    lock, device = tmp_path / "lock", tmp_path / "device"
    lock.write_text(str(os.getpid()))
    device.touch()
    at_once, hung = Path.stat, device.stat()

    def looks(path: Path) -> os.stat_result:
        found = at_once(path)
        assert not os.path.samestat(found, hung), f"{path} hangs"
        return found

    monkeypatch.setattr(Path, "stat", looks)
    with device.open(), lock.open():
        said = unreachable.not_reached(tmp_path, ConnectionRefusedError())
    assert f"starting or ending (pid {os.getpid()})" in str(said)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_a_user_outside_the_group_is_told_which_group(state: Path) -> None:
    somebody = ("setpriv", "--reuid", "65534", "--clear-groups")
    if subprocess.run([*somebody, "test", "-r", BIN / "polyvol"], timeout=60, check=False).returncode != 0:
        pytest.skip("this clone is where only root can read it")
    sock = state / "control.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(sock))
        os.chown(sock, 0, 4)
        for mode, directory, what, todo in (
            (0o660, 0o755, f"permission denied on {sock}", "to group "),
            (0o660, 0o750, f"permission denied on the directory {state}", "to group "),
            (0o600, 0o755, f"permission denied on {sock}", "run it as user root, or with sudo"),
        ):
            sock.chmod(mode)
            os.chown(state, 0, 4)
            state.chmod(directory)
            done = subprocess.run(
                [*somebody, BIN / "polyvol", "status"],
                env={"POLYVOL_STATE": str(state)},
                capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
            assert done.returncode == 1
            assert what in done.stderr
            assert todo in done.stderr


def test_a_directory_above_is_named(tmp_path: Path) -> None:
    error = FileNotFoundError(errno.ENOENT, "x")
    assert reason(error, tmp_path / "a" / "b") == f"the directory {tmp_path / 'a'} does not exist"
    assert reason(error, tmp_path / "a") == "it does not exist"


def test_names_that_are_not_utf_8_are_not_sent(state: Path) -> None:
    with pytest.raises(NotText):
        Client(state).get("volumes", os.fsdecode(b"\xff"))
    with pytest.raises(NotText):
        Client(state).post("devices", body={"path": [os.fsdecode(b"/\xff")]})


@pytest.mark.parametrize(
    ("redirection", "code", "words"),
    [
        (">/dev/full", 1, "the standard output cannot be written: no space left"),
        (">&-", 1, "the standard output cannot be written: it is closed"),
        ("2>&-", 0, ""),
        ("2>/dev/full", 0, ""),
        ("<&-", 0, ""),
        ("--help >/dev/full", 1, "the standard output cannot be written: no space left"),
        ("--json >/dev/full", 1, '{"error": {"code": "output-failed"'),
        ("| true; exit ${PIPESTATUS[0]}", (0, 141), ""),
    ],
)
def test_broken_standard_files_are_told(
    daemon: Daemon, redirection: str, code: int | tuple[int, ...], words: str
) -> None:
    command = f"{BIN}/polyvol status --state-dir {daemon.state_dir} {redirection}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (code if isinstance(code, tuple) else (code,)), done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_an_interrupt_ends_with_130_and_says_nothing(state: Path) -> None:
    with answering(state, None):
        process = subprocess.Popen(
            [BIN / "polyvol", "status", "--state-dir", state], stderr=subprocess.PIPE, text=True
        )
        until = time.monotonic() + 30
        while not Path(f"/proc/{process.pid}/wchan").exists() or not _connected(process.pid):
            assert time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert (process.returncode, said.strip()) == (130, "")


def _connected(pid: int) -> bool:
    """Whether a process has a socket: it has asked, or does so now."""
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # one that was closed in between
            if str(path.readlink()).startswith("socket:"):
                return True
    return False


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"processors = 'x'", "processors has to be a number"),
        (b"state-dir = ''", "state-dir is '', which is no path"),
        (b"a = '\xff'", "it is not UTF-8 at byte 5"),
        (b"[", "it is not TOML"),
        (b"#" * (2 << 20), "it is longer than"),
    ],
)
def test_each_mistake_of_a_configuration_is_one_sentence(tmp_path: Path, text: bytes, words: str) -> None:
    file = tmp_path / "c.toml"
    file.write_bytes(text)
    done = subprocess.run(
        [BIN / "polyvold", "--config", file], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
