"""A task of ``srun`` as a worker: who it is among how many, and where they meet, from the job's own environment."""

import os
import re

from pycls.errors import InputError


def adopt_task() -> None:
    """Set RANK, WORLD_SIZE and their like in a task of ``srun``, as torchrun would; what is set already stays.

    Nothing is done in a step of one task, in the batch script itself, or without SLURM: there SLURM_PROCID may be set,
    but there are no peers to meet. MASTER_PORT is a function of the job and step, so that jobs on one machine do not race
    for it; ports that SLURM has reserved for the step (``srun --resv-ports``) go before.

    Raises:
        InputError: SLURM's variables make no sense.
    """
    env = os.environ
    if int(env.get("SLURM_STEP_NUM_TASKS", "1")) < 2 or "WORLD_SIZE" in env or "SLURM_PROCID" not in env:
        return
    try:
        job, step = int(env["SLURM_JOB_ID"]), int(env["SLURM_STEP_ID"])
        here = tasks_of_node(env["SLURM_STEP_TASKS_PER_NODE"], int(env["SLURM_NODEID"]))
        alone = int(env["SLURM_STEP_NUM_NODES"]) == 1
        place = {"RANK": env["SLURM_PROCID"], "WORLD_SIZE": env["SLURM_STEP_NUM_TASKS"],
                 "LOCAL_RANK": env["SLURM_LOCALID"], "LOCAL_WORLD_SIZE": str(here)}  # fmt: skip
        host = "127.0.0.1" if alone else first_host(env["SLURM_STEP_NODELIST"])
    except (KeyError, ValueError) as error:
        raise InputError(f"SLURM's variables of this step make no sense: {error}; give RANK and WORLD_SIZE") from None
    env.update(place)
    reserved = re.match(r"\d+", env.get("SLURM_STEP_RESV_PORTS", ""))
    meet_at(host, int(reserved[0]) if reserved else meeting_port(job, step))


def cores_of_task() -> int:
    """How many cores ``srun --cpus-per-task`` gave to this one of several tasks; 0 where it did not, or elsewhere."""
    several = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1
    return int(os.environ.get("SLURM_CPUS_PER_TASK", "0")) if several else 0


def meet_at(host: str, port: int) -> None:
    """Have the process group meet there, unless the user says where; on one machine, without its name being looked up."""
    os.environ.setdefault("MASTER_ADDR", host)
    os.environ.setdefault("MASTER_PORT", str(port))
    if host == "127.0.0.1":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def meeting_port(job: int, step: int = 0) -> int:
    """A port below those that the kernel gives away: its own for each of 1,250 jobs in a row, 16 steps a job."""
    return 10_000 + (16 * job + step % 16) % 20_000


def tasks_of_node(text: str, node: int) -> int:
    """How many tasks a step has on its ``node``-th node, from SLURM's ``4(x2),3``."""
    counts: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if found is None:
            raise ValueError(f"SLURM_STEP_TASKS_PER_NODE={text}")
        counts += [int(found[1])] * int(found[2] or 1)
    if node >= len(counts):
        raise ValueError(f"SLURM_NODEID={node} of SLURM_STEP_TASKS_PER_NODE={text}")
    return counts[node]


def first_host(nodes: str) -> str:
    """The first of SLURM's compressed list of hosts: ``gpu[003-004,9],login`` begins with ``gpu003``."""
    found = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    if found is None:
        raise ValueError(f"SLURM_STEP_NODELIST={nodes}")
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", found[0])
