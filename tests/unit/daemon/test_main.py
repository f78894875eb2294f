"""polyvold's settings, its words to systemd, its exit, and the front-end nbdkit's keeper."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from polyvol.daemon.config import load_config
from polyvol.daemon.errors import BadConfig
from polyvol.daemon.host.notify import notify
from polyvol.daemon.main import cli
from polyvol.daemon.process import nbdkit as frontend_nbdkit
from tests.support.proc import wait_until

ROOT = Path(__file__).resolve().parents[3]
RUN = """
import sys
from polyvol.daemon import engine_border
from tests.support.sim_engine import SimWorld
engine_border.load_engine = SimWorld
from polyvol.daemon.main import main
main()
"""


def test_options_win_over_the_file_and_the_file_over_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYVOL_STATE", "/env")
    file = tmp_path / "polyvold.toml"
    file.write_text('state-dir = "/file"\nprocessors = 3\nnbd-listen = "[::1]:10809"\n')
    assert load_config(None, {}).state_dir == Path("/env")
    config = load_config(file, {"processors": 5, "frontend": None})
    assert (config.state_dir, config.processors, config.nbd_listen) == (Path("/file"), 5, "[::1]:10809")
    assert load_config(file, {"state-dir": "/option"}).state_dir == Path("/option")
    assert (config.io_timeout_s, load_config(file, {"io-timeout": 5}).io_timeout_s) == (60, 5)
    monkeypatch.delenv("POLYVOL_STATE")
    assert load_config(None, {}).state_dir == Path("/var/lib/polyvol")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('colour = "red"', "there is no setting 'colour'"),
        ("state_dir = '/x'", "there is no setting 'state_dir'"),
        ('processors = "2"', "processors has to be a number"),
        ("processors = true", "processors has to be a number"),
        ("processors = 0", "can be 1 to 256"),
        ('frontend = "qemu"', "native or nbdkit"),
        ('nbd-listen = "x"', "is not HOST:PORT"),
        ("io-timeout = -1", "or 0 for no limit"),
        ("io-timeout = 86401", "can be 1 to 86400"),
        ('nbd-listen = "127.0.0.1:65536"', "a port is at most 65535"),
        ("= 5", "is not TOML"),
        ('state-dir = ""', "state-dir is '', which is no path"),
        ('nbd-socket = ""', "nbd-socket is '', which is no path"),
        ('state-dir = "a\\u0000b"', "which is no path"),
    ],
)
def test_a_configuration_that_is_not_right_is_refused(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "polyvold.toml"
    file.write_text(text)
    with pytest.raises(BadConfig, match=words.replace("[", r"\[")):
        load_config(file, {})
    result = CliRunner().invoke(cli, ["--config", str(file)])
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)


def test_a_missing_configuration_is_one_sentence(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["--config", str(tmp_path / "nix")])
    assert result.exit_code == 1
    assert "it cannot be read (it does not exist)" in result.stderr
    assert CliRunner().invoke(cli, ["--nix"]).exit_code == 2


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    name = f"@polyvol-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name.replace("@", "\0"))
        listener.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        notify("READY=1")
        assert listener.recv(100) == b"READY=1"
    notify("STOPPING=1")  # nobody listens: no error


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_polyvold_says_ready_and_ends_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-c", RUN, "--state-dir", str(tmp_path), "--nbd-listen", "127.0.0.1:0"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith(
                f"ready: NBD on nbd+unix:///?socket={tmp_path}/nbd.sock and nbd://127.0.0.1:"
            )
            second = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=False
            )
            assert second.returncode == 1
            assert second.stderr.startswith(f"polyvold (pid {process.pid}) already runs on {tmp_path}")
            process.send_signal(number)
            out, err = process.communicate(timeout=20)
        finally:
            process.kill()
    assert (process.returncode, out, err) == (0, "", "")
    assert not (tmp_path / "control.sock").exists()


def test_the_command_line_starts_without_the_daemons_libraries() -> None:
    script = "import sys, polyvol.daemon.client.cli.commands; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=20, check=True
    )
    loaded = {name.split(".")[0] for name in done.stdout.split()} | set(done.stdout.split())
    assert not loaded & {"waitress", "pydantic", "rich", "sqlite3", "asyncio", "polyvol.engine"}


def test_the_keepers_helper_hands_the_sockets_over(tmp_path: Path) -> None:
    listeners = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(2)]
    for number, listener in enumerate(listeners):
        listener.bind(str(tmp_path / f"s{number}"))
    fds = [listener.fileno() for listener in reversed(listeners)]
    show = (
        "import os, socket; assert os.environ['LISTEN_PID'] == str(os.getpid()), 'pid';"
        "print(*[socket.socket(fileno=3 + n).getsockname() for n in range(int(os.environ['LISTEN_FDS']))])"
    )
    command = [
        sys.executable,
        "-c",
        frontend_nbdkit._ACTIVATE,
        str(os.getpid()),
        "2",
        *map(str, fds),
        sys.executable,
        "-c",
        show,
    ]
    done = subprocess.run(command, pass_fds=fds, capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout.split() == [str(tmp_path / "s1"), str(tmp_path / "s0")]
    for listener in listeners:
        listener.close()


def test_relative_paths_need_a_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(BadConfig, match="no working directory"):
        load_config(None, {"state-dir": "x"})
    assert load_config(None, {"state-dir": "/x"}).state_dir == Path("/x")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("closed", ["1", "0 1 2"])
def test_a_start_with_closed_streams(short_dir: Path, closed: str) -> None:
    """What polyvold opens never gets their numbers."""
    code = (
        f"import os\nfor number in {closed.split()!r}: os.close(int(number))\nimport sys\nsys.stdout = None"
    )
    command = [sys.executable, "-c", code + RUN, "--state-dir", str(short_dir / "s")]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    wait_until((short_dir / "s" / "control.sock").exists, "polyvold to serve")
    targets = {Path(f"/proc/{process.pid}/fd/{number}").readlink() for number in closed.split()}
    assert targets == {Path("/dev/null")}
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")


def test_a_start_with_too_few_files_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (20, 20))
    result = CliRunner().invoke(cli, ["--state-dir", str(tmp_path / "state")])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "polyvold failed: only 20 files can be open in this process, and at least 64 are needed;"
        " raise the limit on open files (`ulimit -n`)\n"
    )
    assert list(tmp_path.iterdir()) == []
