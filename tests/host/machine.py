"""machine: a virtual machine with systemd as PID 1, and a way to run scripts in it.

How it works      QEMU in software (no KVM is asked for) boots the image's kernel on a throw-away overlay of
                  its disk. A second disk holds files from here, read-only. The agent in the machine runs
                  scripts that come through a virtio-serial port; QMP plugs disks in and out. There is no
                  network.
Owner and locks   A Machine ends the QEMU that it started, by id. One thread reads the agent's answers; any
                  may ask.
Errors            AssertionError, with the script's output; the test that fails shows `console`.
"""

import itertools
import json
import queue
import shutil
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.host.image import Image
from tests.support.proc import Background, check, wait_until

BOOT_S = 120.0
REBOOT_S = 60.0
SCRIPT_S = 60.0
MEMORY_MIB = 1024
PROCESSORS = 2


class Script:
    """A script that runs in the machine."""

    def __init__(self, text: str, timeout_s: float) -> None:
        self.text = text
        self.begun = time.monotonic()
        self._deadline = self.begun + timeout_s * 1.5 + 10
        self._answer: queue.Queue[dict[str, Any]] = queue.Queue()

    def put(self, answer: dict[str, Any]) -> None:
        """The agent's answer came."""
        self._answer.put(answer)

    def wait(self) -> tuple[int, str]:
        """Its exit code, and what it said."""
        try:
            answer = self._answer.get(timeout=max(0.1, self._deadline - time.monotonic()))
        except queue.Empty:
            raise AssertionError(f"the machine did not answer:\n{self.text}") from None
        return answer["rc"], answer["out"]

    def ok(self) -> str:
        """Its output; it has to succeed."""
        rc, out = self.wait()
        assert rc == 0, f"exit status {rc} in the machine:\n{self.text}\nIt said:\n{out}"
        return out


class Machine:
    """One virtual machine. Use it as a context manager."""

    def __init__(self, directory: Path, image: Image, files: Mapping[str, Path]) -> None:
        self._directory = directory
        self._image = image
        self._files = files
        self._root, self._payload = directory / "root.qcow2", directory / "payload.img"
        self.console_log = directory / "console.log"
        self._numbers = itertools.count(1)
        self._scripts: dict[int, Script] = {}
        self._boots: queue.Queue[str] = queue.Queue()

    def __enter__(self) -> Self:
        self._make_disks()
        self._start_qemu()
        try:
            self._boot()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise AssertionError(f"the machine did not come up: {error}\n{self.console()}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End QEMU; its disks are of no more use."""
        self._qemu.kill()
        self._disconnect()

    def console(self) -> str:
        """What the machine's console has shown."""
        if not self.console_log.exists():
            return ""
        return self.console_log.read_text(errors="replace").replace("\r\n", "\n")

    def start(self, script: str, timeout_s: float = SCRIPT_S) -> Script:
        """Start a script of bash; an unset variable or a failed command ends it."""
        number = next(self._numbers)
        running = self._scripts[number] = Script(script, timeout_s)
        request = {"id": number, "script": script, "timeout_s": timeout_s}
        self._agent.sendall(json.dumps(request).encode() + b"\n")
        return running

    def ok(self, script: str, timeout_s: float = SCRIPT_S) -> str:
        """Run a script that has to succeed; what it said."""
        return self.start(script, timeout_s).ok().strip()

    def reboot(self) -> None:
        """Have systemd reboot it, and wait until it is up again. No disk may be plugged in.

        QEMU ends with the old kernel, and a new one boots the next: in the same one its translated code
        makes every write of the new kernel to the old one's pages so slow that it takes minutes.
        """
        self.start("systemctl reboot")
        assert self._qemu.wait(REBOOT_S) == 0, f"QEMU ended:\n{self._qemu.said()}"
        self._disconnect()
        self._start_qemu()
        self._boot()

    def qmp(self, command: str, **arguments: object) -> Any:
        """One command to QEMU."""
        self._qmp.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            answer = json.loads(self._qmp_lines.readline())
            if "event" not in answer:
                assert "error" not in answer, f"{command} {arguments}: {answer}"
                return answer.get("return")

    def add_disk(self, name: str, size_bytes: int) -> None:
        """Make a disk and plug it in; it is /dev/disk/by-id/virtio-NAME."""
        file = self._directory / f"{name}.img"
        with file.open("wb") as disk:
            disk.truncate(size_bytes)
        self.plug(name)

    def plug(self, name: str) -> None:
        """Plug a disk that was made before in."""
        file = {"driver": "file", "filename": str(self._directory / f"{name}.img")}
        self.qmp("blockdev-add", **{"driver": "raw", "node-name": name, "file": file})
        self.qmp("device_add", driver="virtio-blk-pci", drive=name, id=f"disk-{name}", serial=name)

    def unplug(self, name: str) -> None:
        """Pull a disk out, and wait until it is gone."""
        self.qmp("device_del", id=f"disk-{name}")

        def gone() -> bool:
            try:
                self.qmp("blockdev-del", **{"node-name": name})
            except AssertionError:
                return False
            return True

        wait_until(gone, f"disk {name} released", 30)

    def _make_disks(self) -> None:
        check("qemu-img", "create", "-q", "-f", "qcow2", "-b", self._image.disk, "-F", "raw", self._root)
        contents = self._directory / "payload"
        contents.mkdir()
        for name, path in self._files.items():
            shutil.copy(path, contents / name)
        check("mke2fs", "-q", "-F", "-t", "ext4", "-d", contents, self._payload, "256M")

    def _start_qemu(self) -> None:
        for name in ("agent", "qmp"):  # of the QEMU before
            (self._directory / name).unlink(missing_ok=True)
        self._qemu = Background(
            "qemu-system-x86_64",
            *("-accel", "tcg,thread=multi", "-machine", "pc", "-cpu", "max", "-m", MEMORY_MIB),
            *("-smp", PROCESSORS, "-nodefaults", "-no-reboot", "-display", "none", "-nic", "none"),
            *("-kernel", self._image.kernel, "-initrd", self._image.initramfs),
            *("-append", "console=ttyS0 quiet panic=5 systemd.show_status=0"),
            *("-chardev", f"file,id=console,path={self.console_log},append=on", "-serial", "chardev:console"),
            *("-drive", f"if=virtio,file={self._root},format=qcow2,cache=unsafe"),
            *("-drive", f"if=virtio,file={self._payload},format=raw,readonly=on"),
            *("-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
            *("-chardev", f"socket,id=agent,path={self._directory}/agent,server=on,wait=off"),
            *("-device", "virtserialport,chardev=agent,name=polyvol.agent"),
            *("-qmp", f"unix:{self._directory}/qmp,server=on,wait=off"),
            log=self._directory / "qemu.log",
        )

    def _boot(self) -> None:
        self._qmp = self._connect("qmp")
        self._qmp_lines = self._qmp.makefile("r")
        self._qmp_lines.readline()
        self.qmp("qmp_capabilities")
        self._agent = self._connect("agent")
        self._agent.settimeout(None)
        threading.Thread(target=self._read, daemon=True).start()
        self._wait_for_boot()

    def _wait_for_boot(self) -> None:
        deadline = time.monotonic() + BOOT_S
        while True:
            with suppress(queue.Empty):
                self._boots.get(timeout=0.5)
                break
            assert self._qemu.rc is None, f"QEMU ended:\n{self._qemu.said()}"
            assert time.monotonic() < deadline, f"the machine was not up within {BOOT_S} s"
        self.ok("systemctl is-system-running --wait || systemctl --failed --no-legend", BOOT_S)

    def _disconnect(self) -> None:
        for channel in ("_agent", "_qmp_lines", "_qmp"):
            with suppress(AttributeError, OSError):
                getattr(self, channel).close()

    def _connect(self, name: str) -> socket.socket:
        path = self._directory / name
        self._qemu.wait_until(path.exists, f"QEMU's socket {name}", 20)
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        channel.settimeout(60)
        channel.connect(str(path))
        return channel

    def _read(self) -> None:
        pending = b""
        with suppress(OSError):
            while received := self._agent.recv(1 << 16):
                *lines, pending = (pending + received).split(b"\n")
                for line in lines:
                    self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except ValueError:  # the end of what a machine said that was reset in mid-sentence
            return
        if "boot" in message:
            self._boots.put(message["boot"])
        elif message["id"] in self._scripts:
            self._scripts.pop(message["id"]).put(message)
