"""image: a Debian 12 root disk, kernel and initramfs for the virtual machine, made here and kept.

How it works      debootstrap makes the tree from the archive that this machine's apt uses; Debian's cloud
                  kernel is unpacked into it, so that nothing of it runs here; mke2fs makes the disk of the
                  tree. The initramfs is busybox and the few modules that the disk needs.
Owner and locks   build/host/IMAGE, where IMAGE changes with everything that goes into it. An image is made
                  beside its place and then renamed. Older ones are removed.
Errors            AssertionError with the output of what failed; it needs to be root, as debootstrap does.
"""

import hashlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support.proc import check

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "host"
SUITE = "bookworm"
PACKAGES = (
    "systemd,systemd-sysv,dbus,udev,kmod,python3,python3-crcmod,python3-pyudev,python3-systemd,python3-libnbd,"
    "e2fsprogs,xfsprogs,fio,nbd-client,busybox-static,procps,iproute2"
)
KERNEL = "linux-image-cloud-amd64"
EARLY_MODULES = ("virtio_pci", "virtio_blk")
DISK_BYTES = 4 << 30
BUILD_TIMEOUT_S = 400.0
NOT_NEEDED = ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale", "usr/share/man")
HERE = Path(__file__).parent
FILES = {
    "etc/hostname": "polyvol-test\n",
    "etc/fstab": "/dev/vda / ext4 rw 0 1\n",
    "etc/systemd/journald.conf.d/test.conf": "[Journal]\nStorage=persistent\nForwardToConsole=yes\n"
    "MaxLevelConsole=info\nRateLimitBurst=0\n",
    "etc/systemd/system.conf.d/test.conf": "[Manager]\nDefaultTimeoutStopSec=60s\nShowStatus=no\n",
    "etc/modules-load.d/test.conf": "virtio_console\nnbd\n",
    "etc/modprobe.d/test.conf": "options nbd nbds_max=16\n",
    "etc/systemd/system/polyvol-agent.service": "[Unit]\nDescription=test agent\n"
    "After=systemd-modules-load.service\n[Service]\nExecStart=/usr/bin/python3 /usr/local/lib/agent.py\n"
    "Restart=always\nRestartSec=200ms\nKillMode=process\n",
}
MASKED = (
    "serial-getty@ttyS0.service",
    "getty@tty1.service",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "systemd-networkd-wait-online.service",
)
INIT = """#!/bin/busybox sh
B=/bin/busybox
$B mount -t proc proc /proc; $B mount -t sysfs sys /sys; $B mount -t devtmpfs dev /dev
for m in $($B cat /modules.order); do $B insmod /modules/$m; done
for i in 1 2 3 4 5 6 7 8 9 10; do [ -e /dev/vda ] && break; $B sleep 0.2; done
$B mount -t ext4 /dev/vda /root || exec $B sh
$B mount --move /dev /root/dev; $B mount --move /sys /root/sys; $B mount --move /proc /root/proc
exec $B switch_root /root /sbin/init
"""


@dataclass(frozen=True)
class Image:
    """What a machine boots from; not to be written to."""

    disk: Path
    kernel: Path
    initramfs: Path


def ensure_image() -> Image:
    """The image, made if it is not there (about a minute)."""
    kernel = kernel_package()
    directory = CACHE / f"image-{_fingerprint(kernel)}"
    if not directory.is_dir():
        assert os.geteuid() == 0, (
            "making the virtual machine's disk needs root: run scripts/test --host as root"
        )
        for old in CACHE.glob("image-*"):
            shutil.rmtree(old)
        making = CACHE / "image-new"
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        try:
            _make(making, kernel)
        except BaseException:
            shutil.rmtree(making, ignore_errors=True)
            raise
        making.rename(directory)
    return Image(directory / "root.img", directory / "vmlinuz", directory / "initramfs")


def kernel_package() -> str:
    """The package and version that the kernel's metapackage stands for today, as apt-get takes it."""
    depends = check("apt-cache", "depends", "--important", KERNEL)
    found = re.search(r"Depends: (linux-image-\S+)", depends)
    assert found, f"apt knows no {KERNEL}: run apt-get update\n{depends}"
    policy = check("apt-cache", "policy", found[1])
    candidate = re.search(r"Candidate: (\S+)", policy)
    assert candidate, policy
    return f"{found[1]}={candidate[1]}"


def archive() -> str:
    """Where this machine's apt gets Debian from."""
    wanted = "$(REPO_URI) $(RELEASE) $(COMPONENT) $(ORIGIN)"
    told = check("apt-get", "indextargets", "--format", wanted, "Created-By: Packages")
    for line in told.splitlines():
        address, *rest = line.split()
        if rest == [SUITE, "main", "Debian"]:
            return address
    raise AssertionError(
        f"apt has no source for Debian {SUITE}, which the virtual machine is made of:\n{told}"
    )


def _fingerprint(kernel: str) -> str:
    parts = [kernel, Path(__file__).read_text(), (HERE / "agent.py").read_text()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _make(into: Path, kernel: str) -> None:
    tree = into / "tree"
    tree.mkdir()
    check("tar", "-xf", _base(), "-C", tree, timeout_s=120)
    _unpack_kernel(into, tree, kernel)
    for name, text in FILES.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    shutil.copy(HERE / "agent.py", tree / "usr/local/lib/agent.py")
    units = tree / "etc/systemd/system"
    for unit in MASKED:
        (units / unit).unlink(missing_ok=True)
        (units / unit).symlink_to("/dev/null")
    wants = units / "multi-user.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / "polyvol-agent.service").symlink_to("/etc/systemd/system/polyvol-agent.service")
    (tree / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    disk = into / "root.img"
    with disk.open("wb") as file:
        file.truncate(DISK_BYTES)
    check("mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, disk, timeout_s=120)
    shutil.rmtree(tree)


def _base() -> Path:
    """The tree that debootstrap makes, as an archive; made if it is not there."""
    packed = CACHE / f"base-{hashlib.sha256(f'{SUITE} {PACKAGES}'.encode()).hexdigest()[:16]}.tar"
    if packed.exists():
        return packed
    for old in CACHE.glob("base-*.tar"):
        old.unlink()
    tree = CACHE / "base-new"
    shutil.rmtree(tree, ignore_errors=True)
    include = f"--include={PACKAGES}"
    # What it mounts in the tree is in a namespace of its own, and goes with it however it ends.
    command: list[str | Path] = [
        "unshare",
        "--mount",
        "debootstrap",
        "--variant=minbase",
        include,
        SUITE,
        tree,
        archive(),
    ]
    check(*command, timeout_s=BUILD_TIMEOUT_S)
    for folder in NOT_NEEDED:
        shutil.rmtree(tree / folder, ignore_errors=True)
    check("tar", "-cf", CACHE / "base-new.tar", "-C", tree, ".", timeout_s=120)
    shutil.rmtree(tree)
    (CACHE / "base-new.tar").rename(packed)
    return packed


def _unpack_kernel(into: Path, tree: Path, kernel: str) -> None:
    check("apt-get", "download", "-q", kernel, cwd=into, timeout_s=180)
    (package,) = into.glob("linux-image-*.deb")
    unpacked = into / "kernel"
    check("dpkg-deb", "-x", package, unpacked, timeout_s=120)
    package.unlink()
    (vmlinuz,) = (unpacked / "boot").glob("vmlinuz-*")
    version = vmlinuz.name.removeprefix("vmlinuz-")
    shutil.copy(vmlinuz, into / "vmlinuz")
    # Moved by hand: unpacked into the tree, the package's /lib would take the place of the link to usr/lib.
    modules = tree / "usr/lib/modules" / version
    modules.parent.mkdir(exist_ok=True)
    (unpacked / "lib/modules" / version).rename(modules)
    shutil.rmtree(unpacked)
    check("depmod", "-b", tree, version, timeout_s=120)
    _make_initramfs(into, tree, modules)


def _make_initramfs(into: Path, tree: Path, modules: Path) -> None:
    base = into / "initramfs.d"
    for name in ("bin", "proc", "sys", "dev", "root", "modules"):
        (base / name).mkdir(parents=True)
    shutil.copy(tree / "bin/busybox", base / "bin/busybox")
    files = _module_files(modules)
    for file in files:
        shutil.copy(modules / file, base / "modules" / Path(file).name)
    (base / "modules.order").write_text("\n".join(Path(file).name for file in files) + "\n")
    (base / "init").write_text(INIT)
    (base / "init").chmod(0o755)
    names = "\n".join(str(path.relative_to(base)) for path in base.rglob("*"))
    packed = subprocess.run(
        ["cpio", "--quiet", "-o", "-H", "newc"],
        input=names.encode(),
        cwd=base,
        capture_output=True,
        check=True,
    )
    (into / "initramfs").write_bytes(packed.stdout)
    shutil.rmtree(base)


def _module_files(modules: Path) -> list[str]:
    """What the disk needs, below the modules' directory, in the order of loading."""
    needs: dict[str, list[str]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        file, _, others = line.partition(":")
        needs[file] = others.split()
    by_name = {Path(file).name.removesuffix(".ko").replace("-", "_"): file for file in needs}
    order: list[str] = []

    def add(file: str) -> None:
        for other in needs[file]:
            add(other)
        if file not in order:
            order.append(file)

    for name in EARLY_MODULES:
        assert name in by_name, f"the kernel has no module {name}"
        add(by_name[name])
    return order
