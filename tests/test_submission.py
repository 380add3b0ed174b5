"""What SLURM is asked for; tests/e2e/slurm has a real one."""

import pytest

from pycls import config
from pycls.errors import InputError
from pycls.run import slurm

JOB = ("MODEL.TYPE", "lenet5", "LAUNCH.MODE", "slurm", "TRAIN.BATCH_SIZE", "480")


@pytest.mark.parametrize(
    ("words", "layout"),
    [
        (["DEVICE", "cpu", "NUM_PROCS", "3"], (1, 3)),
        (["NUM_GPUS", "8"], (1, 8)),
        (["NUM_GPUS", "16"], (2, 8)),
        (["NUM_GPUS", "12", "MAX_GPUS_PER_NODE", "4"], (3, 4)),
        (["NUM_GPUS", "3", "MAX_GPUS_PER_NODE", "4"], (1, 3)),
    ],
)
def test_processes_fill_machines(words: list[str], layout: tuple[int, int]) -> None:
    assert slurm.layout(config.load(None, [*JOB, *words])) == layout


def test_the_clusters_defaults_are_left_alone() -> None:
    asked = slurm.sbatch_options(config.load(None, [*JOB, "DEVICE", "cpu", "NUM_PROCS", "2"]))
    given = {key: value for key, value in asked.items() if value is not None}
    assert given == {
        "job_name": "pycls_job", "time": 4200, "signal_delay_s": 120, "nodes": 1, "ntasks_per_node": 2, "cpus_per_task": 1,
        "additional_parameters": {"requeue": True}, "srun_args": ["--kill-on-bad-exit=1", "--cpus-per-task=1"],
    }  # fmt: skip


def test_every_option_arrives() -> None:
    words = ["NUM_GPUS", "16", "LAUNCH.GRES", "gpu:a100", "LAUNCH.GPU_TYPE", "volta", "LAUNCH.CONSTRAINT", "ib",
             "LAUNCH.MEM_PER_GPU", "60", "LAUNCH.CPUS_PER_GPU", "10", "LAUNCH.PARTITION", "p", "LAUNCH.ACCOUNT", "a",
             "LAUNCH.QOS", "q", "LAUNCH.EXCLUDE", "n1,n2", "LAUNCH.COMMENT", "c", "LAUNCH.EMAIL", "me@here",
             "LAUNCH.SBATCH", "[--reservation=night, --exclusive]", "LAUNCH.TIME_LIMIT", "60"]  # fmt: skip
    asked = slurm.sbatch_options(config.load(None, [*JOB, *words]))
    expected = {
        "gres": "gpu:a100:8", "constraint": "volta&ib", "mem": "491520M", "cpus_per_task": 10, "partition": "p", "account": "a",
        "qos": "q", "exclude": "n1,n2", "comment": "c", "nodes": 2, "ntasks_per_node": 8, "time": 60,
    }  # fmt: skip
    assert {key: asked[key] for key in expected} == expected
    assert asked["additional_parameters"] == {"requeue": True, "mail-user": "me@here", "mail-type": "END,FAIL",
                                              "reservation": "night", "exclusive": True}  # fmt: skip


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["NUM_GPUS", "12"], "NUM_GPUS: 12 processes do not fill machines of MAX_GPUS_PER_NODE 8; 8 or 16 do"),
        (["NUM_GPUS", "16", "LAUNCH.MODE", "submitit_local"], "16 processes on one machine, but MAX_GPUS_PER_NODE is 8"),
        (["DEVICE", "mps"], "a run on mps is a run of one process on this machine, no slurm job"),
        (["LAUNCH.SBATCH", "[reservation=x]"], "expected options such as --reservation=night, found 'reservation=x'"),
        (["LAUNCH.TIME_LIMIT", "1"], "120 s before the end is before the start: LAUNCH.TIME_LIMIT is 1 min"),
    ],
)
def test_what_cannot_work_is_said(words: list[str], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        config.load(None, [*JOB, *words])
