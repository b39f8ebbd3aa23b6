"""A Slurm of one node on loopback, with everything that it writes in one folder."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Self

_NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
_SYSTEM = "/usr/sbin:/sbin"
_SECONDS_TO_START = 60


def why_not() -> str:
    """Why no Slurm can be started here; empty if one can."""
    path = f"{os.environ['PATH']}:{_SYSTEM}"
    missing = [name for name in _NEEDED if shutil.which(name, path=path) is None]
    if missing:
        return f"no {', '.join(missing)}: apt-get install slurmctld slurmd slurm-client munge"
    return "" if os.geteuid() == 0 else "the daemons of Slurm need root"


class Slurm:
    """To be used with ``with``: two processors, and partitions "low" and "high".

    A job in "high" takes the node from those in "low", which are requeued.

    Args:
        folder: for configuration, sockets, states and logs.

    Attributes:
        environment: in which Slurm's commands, and what calls them, find it.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._held = ExitStack()
        path = f"{os.environ['PATH']}:{_SYSTEM}"
        self.environment: Mapping[str, str] = {
            **{name: v for name, v in os.environ.items() if not name.startswith("SLURM")},
            "PATH": path,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "OMP_NUM_THREADS": "1",
        }

    def __enter__(self) -> Self:
        for name in ("munge", "state", "spool"):
            (self._folder / name).mkdir(parents=True, mode=0o755)
        key = self._folder / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        (self._folder / "slurm.conf").write_text(self._configuration())
        munge = {name: self._folder / "munge" / name for name in ("socket", "pid", "log", "seed")}
        with self._held:
            self._start(
                *("munged", "--foreground", "--force", f"--socket={munge['socket']}"),
                *(f"--key-file={key}", f"--pid-file={munge['pid']}"),
                *(f"--log-file={munge['log']}", f"--seed-file={munge['seed']}"),
            )
            self._wait(lambda: munge["socket"].exists())
            self._start("slurmctld", "-D")
            self._start("slurmd", "-D")
            self._wait(lambda: "idle" in self.run("sinfo", "--noheader", "--format=%t"))
            self._held = self._held.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self.run("scancel", "--user=root")
        self._wait(lambda: not self.run("squeue", "--noheader"))
        self._held.close()

    def run(self, *command: str) -> str:
        """What a command prints, errors included, without the last line's end."""
        return subprocess.run(
            command,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=60,
        ).stdout.strip()

    def _start(self, *command: str) -> None:
        with open(self._folder / f"{command[0]}.out", "wb") as log:
            process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        self._held.callback(_end, process)

    def _wait(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + _SECONDS_TO_START
        while not condition():
            logs = [path.read_text()[-2000:] for path in self._folder.glob("*.out")]
            assert time.monotonic() < end, "\n".join(logs)
            time.sleep(0.1)

    def _configuration(self) -> str:
        host, folder = socket.gethostname(), self._folder
        controller, node = _free_port(), _free_port()
        return f"""
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={controller}
SlurmdPort={node}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=1,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=30
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES MaxTime=60 State=UP PriorityTier=1
PartitionName=high Nodes={host} MaxTime=60 State=UP PriorityTier=10
"""


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
