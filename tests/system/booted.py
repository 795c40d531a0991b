"""systemd as PID 1 of namespaces of its own: its own mounts, processes, network and cgroups, thrown away at the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from scaivaultd.demo.process import until

CHECKOUT = Path(__file__).parents[2]
SYSTEMD = Path("/lib/systemd/systemd")
PREFIX = "/opt/scaivaultd"
_PROGRAMS = {
    "scaivaultd": "scaivaultd.__main__",
    "scaivaultctl": "scaivaultd.ctl",
    "development-ca": "scaivaultd.demo.ca",
}
_TOOLS = ("unshare", "nsenter", "ip", "ldconfig", "systemctl", "systemd-creds", "useradd", "runuser", "pgrep")
_NAMESPACES = ("--mount", "--uts", "--ipc", "--net", "--pid", "--fork", "--cgroup")
# Stand-ins for those of the host, whose own services are none of ours.
_TARGETS = ("sysinit", "basic", "sockets", "timers", "shutdown", "network-online", "multi-user", "boot")
_JOURNAL = ("systemd-journald.service", "systemd-journald.socket", "systemd-journald-dev-log.socket")
_WAIT_SECONDS = 60.0


def missing() -> str | None:
    """Why this machine can boot none."""
    if os.geteuid() != 0:
        return "only root can boot a systemd of its own in namespaces"
    tools = [each for each in _TOOLS if shutil.which(each) is None]
    if tools or not SYSTEMD.exists():
        return f"systemd or a tool is not installed: {', '.join(tools) or SYSTEMD}"
    trial = subprocess.run(
        [*_unshare(), "sh", "-ec", _OVERLAY.format(work="/run/trial", root="/run/trial/root")],
        capture_output=True,
        text=True,
        timeout=30,
    )
    if trial.returncode:
        return f"the kernel gives no namespaces or overlay here: {trial.stderr.strip()}"
    try:
        _remove_cgroup(_new_cgroup())
    except OSError as error:
        return f"no cgroup can be made here: {error}"
    return None


def _unshare() -> list[str]:
    return ["unshare", *_NAMESPACES]


_OVERLAY = """
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir -p {work}/upper {work}/scratch {root}
mount -t overlay overlay -o lowerdir=/,upperdir={work}/upper,workdir={work}/scratch {root}
"""

_BOOT = (
    "set -e\n"
    + _OVERLAY
    + """
cd {root}
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount --rbind /dev dev
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
# Nothing of what may be installed on this machine.
rm -rf etc/scaivaultd etc/systemd/system/scaivaultd* var/lib/scaivaultd var/backups/scaivaultd
mkdir -p opt/scaivaultd
mount -t tmpfs tmpfs opt/scaivaultd
mkdir -p opt/scaivaultd/checkout opt/scaivaultd/python opt/scaivaultd/environment
mount --bind {python} opt/scaivaultd/python
mount --bind {environment} opt/scaivaultd/environment
mount --bind {checkout} opt/scaivaultd/checkout
# A Python that is built with a shared library looks for it where it was installed, which the unit may hide.
mkdir -p opt/scaivaultd/lib
for each in {python}/lib/libpython*.so*; do test ! -e $each || cp -L $each opt/scaivaultd/lib; done
echo /opt/scaivaultd/lib > etc/ld.so.conf.d/00-scaivaultd.conf
mkdir -p run/boot run/shared
mount --bind {shared} run/shared
cp -a run/shared/units/. run/boot/
cp -a run/shared/bin opt/scaivaultd/bin
ip link set lo up
chroot . ldconfig
mkdir -p run/before
pivot_root . run/before
umount -l /run/before
# As a machine's first systemd does, and container managers for theirs: credentials are mounted by a child of it.
mount --make-rshared /
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    SYSTEMD_UNIT_PATH=/run/boot:/etc/systemd/system SYSTEMD_GENERATOR_PATH=/run/none \
    /lib/systemd/systemd --system --log-target=journal-or-kmsg --log-level=info --show-status=0 --unit=boot.target
"""
)

_PROGRAM = """#!{prefix}/python/bin/python3
import sys
sys.path[:0] = ["{prefix}/checkout", "{prefix}/checkout/plugins", "{prefix}/checkout/contrib_dns"]
import site
site.addsitedir("{prefix}/environment/{packages}")
from {module} import main
sys.exit(main())
"""


class Booted:
    """One systemd with the daemon's installation below /opt/scaivaultd; `shared` is at /run/shared inside."""

    def __init__(self, folder: Path) -> None:
        self.shared = folder
        self._outer: subprocess.Popen[bytes] | None = None
        self._cgroup = Path()
        self.pid = 0

    async def start(self) -> None:
        """Boot it, and wait until it takes commands."""
        self._write()
        environment = Path(sys.prefix)
        boot = _BOOT.format(
            work="/run/trial",
            root="/run/trial/root",
            python=sys.base_prefix,
            environment=environment,
            checkout=CHECKOUT,
            shared=self.shared,
        )
        await asyncio.to_thread(self._launch, boot)
        await until(self._is_up, "systemd boots", _WAIT_SECONDS)

    def _launch(self, boot: str) -> None:
        self._cgroup = _new_cgroup()
        enter = f"echo $$ > {self._cgroup}/cgroup.procs; exec " + " ".join(_unshare()) + ' sh -c "$0"'
        with (self.shared / "boot.log").open("wb") as log:
            self._outer = subprocess.Popen(["sh", "-c", enter, boot], stdout=log, stderr=log, start_new_session=True)

    async def _is_up(self) -> bool:
        self.pid = await asyncio.to_thread(self._inner_pid)
        if not self.pid:
            return False
        done = await self.run("systemctl", "is-active", "boot.target", check=False)
        return done.stdout.strip() == "active"

    def _inner_pid(self) -> int:
        assert self._outer is not None
        if self._outer.poll() is not None:
            raise RuntimeError(f"systemd did not boot: {(self.shared / 'boot.log').read_text()}")
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text().split()
        return int(children[0]) if children else 0

    async def run(self, *command: str, check: bool = True, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as root."""
        inside = ["nsenter", "-t", str(self.pid), "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w", *command]
        done = await asyncio.to_thread(subprocess.run, inside, capture_output=True, text=True, timeout=seconds)
        if check and done.returncode:
            raise AssertionError(f"{command}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    async def show(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return (await self.run("systemctl", "show", "--value", "-p", name, unit)).stdout.strip()

    async def journal(self, *arguments: str) -> str:
        """What is in its journal."""
        return (await self.run("journalctl", "--no-pager", "-o", "cat", *arguments)).stdout

    async def stop(self) -> None:
        """End all of it."""
        if self._outer is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid or self._outer.pid, signal.SIGKILL)
        await asyncio.to_thread(self._outer.wait, 20)
        await asyncio.to_thread(_remove_cgroup, self._cgroup)

    def _write(self) -> None:
        units = self.shared / "units"
        units.mkdir()
        for each in _TARGETS:
            (units / f"{each}.target").write_text("[Unit]\nDefaultDependencies=no\n")
        for each in _JOURNAL:
            shutil.copy(Path("/lib/systemd/system") / each, units / each)
        wants = units / "boot.target.wants"
        wants.mkdir()
        for each in _JOURNAL:
            (wants / each).symlink_to(f"../{each}")
        programs = self.shared / "bin"
        programs.mkdir()
        packages = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
        for name, module in _PROGRAMS.items():
            program = programs / name
            program.write_text(_PROGRAM.format(prefix=PREFIX, packages=packages, module=module))
            program.chmod(0o755)


def _new_cgroup() -> Path:
    mounted = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    roots = [Path(fields[1]) for fields in mounted if fields[2] == "cgroup2"]
    if not roots:
        raise FileNotFoundError("cgroup2 is not mounted")
    made = roots[0] / f"scaivaultd-test-{os.getpid()}-{os.urandom(3).hex()}"
    made.mkdir()
    return made


def _remove_cgroup(made: Path) -> None:
    for each in (*sorted(made.rglob("*"), reverse=True), made):
        if each.is_dir():
            with contextlib.suppress(OSError):
                each.rmdir()
