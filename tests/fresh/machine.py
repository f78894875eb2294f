"""machine: a fresh Debian, debootstrap's minbase with git, in which a clone of this checkout is tried.

How it works      debootstrap makes each release's tree once, from the archive that this machine's apt uses
                  (POLYVOL_TEST_DEBIAN overrides it); each machine is a copy. A command runs with the tree
                  as its root, in namespaces of its own for mounts and processes: what it has started ends
                  with it. How this machine's apt, pip and cargo reach their registries is copied into the
                  tree; packages that were fetched are kept for the next machine.
Owner and locks   build/fresh: base-RELEASE.tar, debs-RELEASE, and the machines, which are removed at the end.
Errors            AssertionError with the output of what failed; it needs to be root, as debootstrap does.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.proc import SYSTEM_PATH, Result, check, run

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "fresh"
ARCHIVE = "POLYVOL_TEST_DEBIAN"
RELEASES = ("bookworm", "trixie")
SOMEBODY = "somebody"
COMMITTED = "2026-01-01T00:00:00Z"  # the same id of the commit on all machines
INCLUDE = "git"
BASE_TIMEOUT_S = 1500.0
REGISTRY_FILES = ("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf", "/etc/apt/auth.conf")
HOME_FILES = (".cargo/config.toml", ".config/pip/pip.conf")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
OWN_CERTIFICATES = Path("/usr/local/share/ca-certificates")
REGISTRY_VARIABLES = ("PIP_", "CARGO_HTTP_", "CARGO_SOURCE_", "CARGO_REGISTRIES_", "SSL_CERT_FILE")
PROXIES = ("http_proxy", "https_proxy", "no_proxy")

# $1: the tree, $2: where its .debs are kept. The rest is run in it.
ENTER = r"""
set -e
tree=$1
mount --bind "$tree" "$tree" # so that its root is a mount, as on every machine
mount --bind /dev "$tree/dev"
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts "$tree/dev/pts"
mount --bind "$tree/dev/pts/ptmx" "$tree/dev/ptmx"
mount -t tmpfs -o mode=1777 none "$tree/dev/shm"
mount -t proc proc "$tree/proc"
mount -t sysfs -o ro sysfs "$tree/sys"
mount -t tmpfs -o mode=755 none "$tree/run"
mount --bind "$2" "$tree/var/cache/apt/archives"
shift 2
cd "$tree"
pivot_root . .
umount --lazy .
cd /
exec "$@"
"""


def archive() -> tuple[str, str]:
    """Where Debian and its security suites are: as a variable says, else as this machine's apt does."""
    told = os.environ.get(ARCHIVE)
    main, security = (told, f"{told}-security") if told else (None, None)
    if main is None:
        wanted = "$(REPO_URI) $(RELEASE) $(COMPONENT) $(ORIGIN)"
        for line in check("apt-get", "indextargets", "--format", wanted, "Created-By: Packages").splitlines():
            address, release, *rest = line.split()
            if rest == ["main", "Debian"] and release in RELEASES:
                main = address
            elif rest == ["main", "Debian"] and release.removesuffix("-security") in RELEASES:
                security = address
    assert main, f"apt has no source for Debian here: give its archive's address in {ARCHIVE}"
    return main, security or f"{main.rstrip('/')}-security"


class Machine:
    """One fresh machine. `user`: who has the clone and works on it: root, or somebody with sudo."""

    def __init__(self, release: str, user: str) -> None:
        self.release = release
        self.user = user
        self.home = Path("/root") if user == "root" else Path("/home") / user
        self.clone = self.home / "polyvol"
        self.tree = CACHE / f"{release}-{user}"
        self.ready = False
        """Whether the first command has come to `ready`."""
        self._debs = CACHE / f"debs-{release}"

    def __enter__(self) -> Self:
        assert os.geteuid() == 0, "making a fresh machine needs root: run scripts/test --fresh as root"
        remove(self.tree)
        self._debs.mkdir(parents=True, exist_ok=True)
        (self._debs / "partial").mkdir(exist_ok=True)
        self.tree.mkdir()
        check("tar", "-xf", _base(self.release), "-C", self.tree, timeout_s=300)
        self._reach_registries()
        if self.user != "root":
            self.ok(
                "apt-get update -qq && apt-get install -qq -y --no-install-recommends sudo >/dev/null 2>&1"
                f" && useradd --create-home --shell /bin/bash {self.user}"
                f" && echo '{self.user} ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/test",
                user="root",
                timeout_s=300,
            )
        self._copy_clone()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        remove(self.tree)

    def run(self, script: str, *, user: str | None = None, timeout_s: float = 60.0) -> Result:
        """Run a script of bash in the clone."""
        user = user or self.user
        home = Path("/root") if user == "root" else self.home
        variables = {
            "PATH": SYSTEM_PATH,
            "HOME": str(home),
        }
        for name, value in os.environ.items():
            if name.startswith(REGISTRY_VARIABLES) or name.lower() in PROXIES:
                variables[name] = value
        words = ["env", "-i", *(f"{name}={value}" for name, value in variables.items())]
        begin = f"cd {shlex.quote(str(self.clone))} 2>/dev/null || cd {home}\n"
        words += ["bash", "-c", begin + script]
        if user != "root":
            words = ["setpriv", "--reuid", user, "--regid", user, "--init-groups", *words]
        shell = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-c", ENTER, "enter"]
        return run(*shell, self.tree, self._debs, *words, timeout_s=timeout_s)

    def ok(self, script: str, *, user: str | None = None, timeout_s: float = 60.0) -> str:
        """The same, to its success; what it said."""
        result = self.run(script, user=user, timeout_s=timeout_s)
        assert result.rc == 0, f"{script}\nstatus {result.rc}\n{result.out}\n{result.err}"
        return result.out

    def add_security(self) -> None:
        """Add Debian's security suite, which debootstrap leaves out, to apt's sources."""
        path = self.tree / "etc/apt/sources.list.d/security.list"
        path.write_text(f"deb {archive()[1]} {self.release}-security main\n")

    def _reach_registries(self) -> None:
        for name in REGISTRY_FILES:
            if Path(name).is_file():
                shutil.copy(name, self.tree / name[1:])
        settings = check("apt-config", "dump", "Acquire")
        (self.tree / "etc/apt/apt.conf.d/99test").write_text(settings)
        for name in HOME_FILES:
            if (Path.home() / name).is_file():
                for home in {"root", str(self.home)[1:]}:
                    (self.tree / home / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(Path.home() / name, self.tree / home / name)
        if OWN_CERTIFICATES.is_dir():
            shutil.copytree(OWN_CERTIFICATES, self.tree / str(OWN_CERTIFICATES)[1:], dirs_exist_ok=True)
        if CERTIFICATES.is_file():
            place = self.tree / str(CERTIFICATES)[1:]
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(CERTIFICATES, place)

    def _copy_clone(self) -> None:
        place = self.tree / str(self.clone)[1:]
        listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, timeout=60).stdout.decode()
        for name in filter(None, names.split("\0")):
            if (ROOT / name).is_symlink() or (ROOT / name).exists():
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, place / name, follow_symlinks=False)
        self.ok(f"chown -R {self.user}: {self.home}", user="root")
        self.ok(
            f"git init -q && git add -A && export GIT_AUTHOR_DATE={COMMITTED} GIT_COMMITTER_DATE={COMMITTED}"
            " && git -c user.name=test -c user.email=test@test.invalid commit -qm test"
        )


def remove(tree: Path) -> None:
    """Remove a machine. Nothing is mounted in it: all mounts were in namespaces that have ended."""
    mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    assert not [path for path in mounted if path.startswith(f"{tree}/")], f"something is mounted below {tree}"
    if tree.exists():
        shutil.rmtree(tree)


def _base(release: str) -> Path:
    """What debootstrap makes of a release, as an archive; made if it is not there."""
    digest = hashlib.sha256(f"{release} {INCLUDE}".encode()).hexdigest()[:12]
    packed = CACHE / f"base-{release}-{digest}.tar"
    if packed.exists():
        return packed
    tree = CACHE / f"base-{release}.new"
    remove(tree)
    command = ["unshare", "--mount", "debootstrap", "--variant=minbase", f"--include={INCLUDE}"]
    check(*command, release, tree, archive()[0], timeout_s=BASE_TIMEOUT_S)
    check("tar", "-cf", packed.with_suffix(".new"), "-C", tree, ".", timeout_s=300)
    remove(tree)
    packed.with_suffix(".new").rename(packed)
    return packed
