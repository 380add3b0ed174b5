"""A real SLURM of one node on this machine: munged, slurmctld and slurmd as children, without systemd, in one folder.

``python tests/e2e/slurm/cluster.py FOLDER`` runs one until Ctrl-C; then ``export SLURM_CONF=FOLDER/slurm.conf`` elsewhere.
The Debian packages are slurm-wlm and munge. The daemons have their own key, socket and ports, so that several clusters
can be on one machine, and nothing outside the folder is touched.
"""

import contextlib
import ctypes
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
JobRequeue=1
MinJobAge=600
KillWait=5
SchedulerParameters=sched_interval=2
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdSpoolDir={folder}/spool
StateSaveLocation={folder}/state
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=debug Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
DAEMONS = ("munged", "slurmctld", "slurmd")
COMMANDS = ("sbatch", "srun", "scontrol", "scancel", "squeue", "sinfo")
START_S = 30.0


class NoCluster(Exception):
    """There can be none here; says why."""


def find(name: str) -> str:
    """The program's path; the daemons' folder need not be on a user's PATH."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/sbin")
    if path is None:
        raise NoCluster(f"{name} is not installed (Debian: slurm-wlm, munge)")
    return path


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Path]:
    """While in force there is a cluster. Yields its slurm.conf.

    Raises:
        NoCluster: it is not installed, or does not come up.
    """
    programs = {name: find(name) for name in (*DAEMONS, *COMMANDS)}
    if sys.platform != "linux" or os.geteuid() != 0:
        raise NoCluster("slurmd needs root, on Linux")
    conf = write_conf(folder)
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        daemons.append(launch(folder, programs["munged"], "--foreground", f"--key-file={folder}/munge.key",
                              f"--socket={folder}/munge.socket", f"--pid-file={folder}/munged.pid",
                              f"--seed-file={folder}/munge.seed", "--force"))  # fmt: skip
        wait_for(lambda: (folder / "munge.socket").exists(), daemons, folder)
        daemons.append(launch(folder, programs["slurmctld"], "-D", "-f", str(conf)))
        daemons.append(launch(folder, programs["slurmd"], "-D", "-f", str(conf)))
        wait_for(lambda: is_up(programs["sinfo"], conf), daemons, folder)
        yield conf
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(timeout=10)
            daemon.kill()
            daemon.wait()


def write_conf(folder: Path) -> Path:
    """The folder with what the daemons need in it."""
    for name in ("spool", "state"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(secrets.token_bytes(128))
    ports = [free_port(), free_port()]
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(folder=folder, host=socket.gethostname().partition(".")[0], cpus=os.cpu_count(),
                                user=pwd.getpwuid(os.geteuid()).pw_name, controller=ports[0], node=ports[1]))  # fmt: skip
    return conf


def free_port() -> int:
    """One that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(folder: Path, *command: str) -> "subprocess.Popen[bytes]":
    """A daemon that dies with this process, its output in the folder."""
    with open(folder / f"{Path(command[0]).name}.log", "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent)


def die_with_parent() -> None:
    """Between fork and exec: a daemon must not outlive the tests, however they end."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)


def is_up(sinfo: str, conf: Path) -> bool:
    """Whether the node takes jobs."""
    env = {**os.environ, "SLURM_CONF": str(conf)}
    return "idle" in subprocess.run([sinfo, "-h", "-o", "%T"], env=env, capture_output=True, text=True).stdout


def wait_for(condition, daemons, folder: Path) -> None:  # type: ignore[no-untyped-def]
    """Until it holds; NoCluster if a daemon dies or time runs out."""
    deadline = time.monotonic() + START_S
    while not condition():
        dead = [daemon for daemon in daemons if daemon.poll() is not None]
        if dead or time.monotonic() > deadline:
            logs = {path.stem: path.read_text(errors="replace")[-400:] for path in folder.glob("*.log")}
            raise NoCluster(f"SLURM did not come up: {logs}")
        time.sleep(0.1)


if __name__ == "__main__":
    with cluster(Path(sys.argv[1]).resolve()) as written:
        print(f"export SLURM_CONF={written}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
