"""A real SLURM on this machine: munged, slurmctld, slurmdbd on MariaDB and two slurmd, without systemd.

Everything lives in one folder and one network namespace whose only interface is loopback, so nothing is reachable from
outside and nothing collides with a SLURM that is already here. Root is needed, and Debian's packages (installed if
missing).

    python -m tests.slurm.cluster up FOLDER      then: FOLDER/enter COMMAND...
    python -m tests.slurm.cluster down FOLDER
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

PACKAGES = "munge slurmctld slurmd slurm-client slurmdbd mariadb-server-core mariadb-client-core iproute2".split()
PYXIS_PACKAGES = "gcc libc6-dev libslurm-dev".split()
PORT = 17000  # in its own network namespace, so any will do
GPUS_PER_NODE = 2
ACCOUNT, PARTITION = "research", "batch"

SLURM_CONF = """\
ClusterName=slipway
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/run/munge.sock
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPort={ctld}
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/slurmd-%n.pid
SlurmdSpoolDir={root}/spool/%n
StateSaveLocation={root}/state
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd-%n.log
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
ReturnToService=2
SlurmdTimeout=25
MessageTimeout=60
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=100000
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
JobRequeue=1
KillWait=10
MinJobAge=3600
InactiveLimit=0
EnforcePartLimits=ALL
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={dbd}
AccountingStoragePass={root}/run/munge.sock
AccountingStorageTRES=gres/gpu
AccountingStorageEnforce=associations
JobAcctGatherType=jobacct_gather/linux
PlugStackConfig={root}/etc/plugstack.conf
NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=8 \
Boards=1 SocketsPerBoard=1 CoresPerSocket=8 ThreadsPerCore=1 RealMemory=64000 Gres=gpu:{gpus} State=UNKNOWN
PartitionName={partition} Nodes=ALL Default=YES MaxTime=02:00:00 State=UP
PartitionName=debug Nodes=n1 MaxTime=00:05:00 State=UP
"""

SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={root}/run/munge.sock
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={dbd}
SlurmUser=root
LogFile={root}/log/slurmdbd.log
PidFile={root}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
"""


class CannotStart(RuntimeError):
    """Why there can be no SLURM here."""


def install(packages: list[str]) -> None:
    """Debian packages that are missing, without letting their scripts start daemons.

    Raises:
        CannotStart: no apt, not root, or the packages cannot be had.
    """
    if os.geteuid() != 0:
        raise CannotStart("a private SLURM needs root: it makes a network namespace and runs slurmd")
    if subprocess.run(["dpkg", "-s", *packages], capture_output=True).returncode == 0:
        return
    if not shutil.which("apt-get"):
        raise CannotStart(f"there is no apt-get to install {' '.join(packages)} with")
    policy = Path("/usr/sbin/policy-rc.d")  # Debian's hook: 101 keeps packages from starting their services
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        command = [
            "apt-get",
            "install",
            "-y",
            "-qq",
            "--no-install-recommends",
            "-o",
            "DPkg::Lock::Timeout=300",
            *packages,
        ]
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        if subprocess.run(command, env=environment, capture_output=True).returncode:
            subprocess.run(["apt-get", "update", "-qq"], capture_output=True, check=False)
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise CannotStart(f"apt-get install failed: {done.stderr.strip().splitlines()[-1:]}")
    finally:
        if ours:
            policy.unlink()


def _wait(what: str, ready: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise CannotStart(f"{what} after {seconds:.0f} s")
        time.sleep(0.1)


@dataclass
class Slurm:
    """A SLURM of ``nodes`` virtual nodes with :data:`GPUS_PER_NODE` pretended GPUs each, in ``root``."""

    root: Path
    nodes: int = 2
    pyxis: bool = False  # the stand-in of pyxis_standin.c: --container-image and its relatives
    _daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        return "slipway-" + hashlib.sha256(str(self.root.resolve()).encode()).hexdigest()[:8]

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"SLURM_CONF": str(self.root / "etc/slurm.conf")}

    def enter(self, *command: str) -> list[str]:
        """``command`` inside the cluster's network namespace."""
        # not ip netns exec: that hides /sys/fs/cgroup, which slurmd wants
        return ["nsenter", f"--net=/run/netns/{self.namespace}", *command]

    def run(self, *command: str, timeout: float = 60, **more: object) -> subprocess.CompletedProcess[str]:
        """Run a client such as squeue, or slipway, on the cluster's login node."""
        environment = self.environment | more.pop("env", {})  # type: ignore[operator]
        return subprocess.run(
            self.enter(*command), env=environment, capture_output=True, text=True, timeout=timeout, **more
        )  # type: ignore[call-overload,no-any-return]

    def up(self) -> None:
        """Start everything; about ten seconds.

        Raises:
            CannotStart: with the reason.
        """
        install(PACKAGES + (PYXIS_PACKAGES if self.pyxis else []))
        self.root = self.root.resolve()
        for name in ("etc", "log", "run", "state", "spool", "munge", "db", "dev"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        (self.root / "munge").chmod(0o700)
        done = subprocess.run(["ip", "netns", "add", self.namespace], capture_output=True, text=True)
        if done.returncode:
            raise CannotStart(f"no network namespace can be made here: {done.stderr.strip()}")
        self._write_configuration()
        try:
            subprocess.run(self.enter("ip", "link", "set", "lo", "up"), check=True)
            # an address that is not 127.x: without one getaddrinfo finds nothing for slurmdbd to bind to
            subprocess.run(self.enter("ip", "address", "add", "10.255.0.1/32", "dev", "lo"), check=True)
            self._start_munge()
            self._start_accounting()
            self._spawn("slurmctld", "slurmctld", "-D", "-c")
            for node in range(1, self.nodes + 1):
                (self.root / f"spool/n{node}").mkdir(exist_ok=True)
                self.start_node(node)
            _wait("not every node is idle", lambda: self.idle_nodes() == self.nodes)
        except BaseException:
            self.down()
            raise

    def _write_configuration(self) -> None:
        values = {
            "root": self.root,
            "host": socket.gethostname().split(".")[0],
            "ctld": PORT + 1,
            "dbd": PORT + 9,
            "first": PORT + 11,
            "last": PORT + 10 + self.nodes,
            "nodes": self.nodes,
            "gpus": GPUS_PER_NODE,
            "partition": PARTITION,
        }
        etc = self.root / "etc"
        (etc / "slurm.conf").write_text(SLURM_CONF.format(**values))
        (etc / "slurmdbd.conf").write_text(SLURMDBD_CONF.format(**values))
        (etc / "slurmdbd.conf").chmod(0o600)
        (etc / "cgroup.conf").write_text("CgroupAutomount=no\n")
        for gpu in range(GPUS_PER_NODE):  # a GRES needs character devices: these are /dev/null by another name
            device = self.root / f"dev/gpu{gpu}"
            if not device.exists():
                os.mknod(device, 0o20666, os.makedev(1, 3))
        (etc / "gres.conf").write_text(
            f"NodeName=n[1-{self.nodes}] Name=gpu File={self.root}/dev/gpu[0-{GPUS_PER_NODE - 1}]\n"
        )
        plugins = ""
        if self.pyxis:
            images = self.root / "images"
            (images / "host").mkdir(parents=True, exist_ok=True)
            (images / "host/.host").touch()
            library = self.root / "pyxis_standin.so"
            source = Path(__file__).with_name("pyxis_standin.c")
            subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-o", str(library), str(source)], check=True)
            plugins = f"required {library} images={images}\n"
        (etc / "plugstack.conf").write_text(plugins)
        enter = self.root / "enter"
        enter.write_text(
            f'#!/bin/sh\nexport SLURM_CONF={etc}/slurm.conf\nexec nsenter --net=/run/netns/{self.namespace} "$@"\n'
        )
        enter.chmod(0o755)

    def _spawn(self, name: str, *command: str, environment: dict[str, str] | None = None) -> None:
        out = (self.root / f"log/{name}.out").open("ab")
        self._daemons[name] = subprocess.Popen(
            self.enter(*command),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=environment or self.environment,
            start_new_session=True,
        )
        (self.root / f"run/{name}.started").write_text(str(self._daemons[name].pid))

    def _start_munge(self) -> None:
        key = self.root / "munge/key"
        if not key.exists():
            key.touch(0o600)
            key.write_bytes(os.urandom(1024))
        command = [
            "munged",
            "--foreground",
            f"--key-file={key}",
            f"--socket={self.root}/run/munge.sock",
            f"--seed-file={self.root}/munge/seed",
        ]
        self._spawn(
            "munged",
            *command,
            f"--pid-file={self.root}/run/munged.pid",
            f"--log-file={self.root}/log/munged.log",
            "--num-threads=2",
        )
        _wait("munged does not answer", lambda: (self.root / "run/munge.sock").exists())

    def _start_accounting(self) -> None:
        data, mysql = self.root / "db/data", self.root / "run/mysql.sock"
        if not (data / "mysql").is_dir():
            command = [
                "mariadb-install-db",
                "--user=root",
                f"--datadir={data}",
                "--auth-root-authentication-method=socket",
                "--skip-test-db",
            ]
            subprocess.run([*command, "--skip-name-resolve"], check=True, capture_output=True)
        small = ["--innodb-buffer-pool-size=128M", "--innodb-log-file-size=64M", "--innodb-flush-log-at-trx-commit=0"]
        small.append("--skip-log-bin")
        where = [f"--datadir={data}", f"--socket={mysql}", f"--pid-file={self.root}/run/mariadbd.pid"]
        self._spawn(
            "mariadbd",
            "mariadbd",
            "--no-defaults",
            "--user=root",
            "--skip-networking",
            "--innodb-lock-wait-timeout=900",
            *where,
            *small,
        )
        ask = ["mariadb", "--no-defaults", "-S", str(mysql), "-e"]
        _wait(
            "MariaDB does not answer", lambda: subprocess.run([*ask, "select 1"], capture_output=True).returncode == 0
        )
        subprocess.run([*ask, "create database if not exists slurm_acct_db"], check=True)
        # slurmdbd's client library takes the socket from here; its StorageHost must say localhost
        self._spawn("slurmdbd", "slurmdbd", "-D", environment=self.environment | {"MYSQL_UNIX_PORT": str(mysql)})
        _wait("slurmdbd does not answer", lambda: self.run("sacctmgr", "-n", "-P", "show", "cluster").returncode == 0)
        manage = ["sacctmgr", "-i", "-Q"]
        self.run(*manage, "add", "cluster", "slipway")
        self.run(*manage, "add", "account", ACCOUNT, "Description=tests", "Organization=tests")
        self.run(*manage, "add", "user", "root", f"Account={ACCOUNT}", f"DefaultAccount={ACCOUNT}")

    def start_node(self, node: int) -> None:
        self._spawn(f"slurmd-n{node}", "slurmd", "-D", "-N", f"n{node}")

    def kill_node(self, node: int) -> None:
        """What a power cut does: slurmd, its step daemons and the job's processes on that node are gone at once."""
        marker = f"SLURMD_NODENAME=n{node}\0".encode()
        for process in Path("/proc").iterdir():
            if not process.name.isdigit():
                continue
            try:
                command = (process / "cmdline").read_bytes()
                environment = (process / "environ").read_bytes()
            except OSError:
                continue
            ours = f"-N\0n{node}\0".encode() in command and b"slurmd" in command
            stepd = command.startswith(b"slurmstepd") and str(self.root).encode() in environment
            if ours or marker in environment or (stepd and self._step_of_node(int(process.name), node)):
                try:
                    os.kill(int(process.name), signal.SIGKILL)
                except ProcessLookupError:
                    continue

    def _step_of_node(self, pid: int, node: int) -> bool:
        try:
            return any(f"spool/n{node}" in os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir())
        except OSError:
            return False

    def idle_nodes(self) -> int:
        done = self.run("sinfo", "-h", "-N", "-p", PARTITION, "-t", "idle", "-o", "%N")
        return len(set(done.stdout.split()))

    def down(self) -> None:
        """End what :meth:`up` started, by its recorded process groups."""
        if (self.root / "run/slurmctld.started").exists():
            subprocess.run(
                self.enter("scancel", "-u", "root", "-f"),
                env=self.environment,
                capture_output=True,
                timeout=30,
                check=False,
            )
            time.sleep(1)
        order = [
            *sorted((self.root / "run").glob("slurmd-*.started")),
            *(self.root / f"run/{n}.started" for n in ("slurmctld", "slurmdbd", "mariadbd", "munged")),
        ]
        for path in order:
            if path.exists():
                self._end(int(path.read_text()))
                path.unlink()
        # whatever is left in the namespace is a job's
        left = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True)
        for pid in left.stdout.split():
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                continue
        subprocess.run(["ip", "netns", "del", self.namespace], capture_output=True, check=False)

    def _end(self, pid: int) -> None:
        for sig, patience in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
            try:
                os.killpg(pid, sig)
            except ProcessLookupError:
                return
            daemon = next((d for d in self._daemons.values() if d.pid == pid), None)
            end = time.monotonic() + patience
            while time.monotonic() < end:
                if daemon is not None and daemon.poll() is not None:
                    return
                if daemon is None and not Path(f"/proc/{pid}").exists():
                    return
                time.sleep(0.1)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("up", "down"):
        sys.exit(__doc__)
    slurm = Slurm(Path(sys.argv[2]), pyxis=True)
    try:
        getattr(slurm, sys.argv[1])()
    except CannotStart as error:
        sys.exit(f"slurm: {error}")
