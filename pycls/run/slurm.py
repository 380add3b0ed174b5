"""A run as a job: submitted to SLURM, or to this machine for a trial, by submitit; followed or left alone."""

import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from pycls import config
from pycls.errors import InputError, RunError
from pycls.runtime.files import atomic_write, make_out_dir
from pycls.runtime.report import first_cause
from pycls.runtime.signals import QUEUE_AGAIN, STOPPED
from pycls.runtime.slurm import meet_at, meeting_port
from pycls.runtime.worker import ERROR_FILE, ERROR_NAME, SUBMITTED, end_by, is_worker, leave, read_reports, report_error

logger = logging.getLogger(__name__)

FOLDER = "submitit"
"""In OUT_DIR: the jobs' logs, their configuration, and submitit's own files."""

POLL_S = (1.0, 10.0)
"""Seconds between two looks at a job, at first and at most: the controller has others to serve."""

_OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "BOOT_FAIL", "DEADLINE")
_FORGOTTEN = "UNKNOWN"
_SIGNALLED = 128


@dataclass(frozen=True)
class Job:
    """What each task of a job does. submitit pickles it, and again when it is to be queued again.

    SIGUSR1 and SIGUSR2 outside the training loop, and from rank 0 after a stop because of them, are submitit's to handle:
    it counts the time-outs and queues the job again.

    Attributes:
        words: the command line.
        command: what runs it, ``pycls.cli.main``.
    """

    words: tuple[str, ...]
    command: Callable[[Sequence[str]], int]

    def __call__(self) -> None:
        import submitit

        place = submitit.JobEnvironment()
        _enter(place)
        try:
            code = self.command(self.words)
            if code in QUEUE_AGAIN and place.global_rank == 0:  # who ended badly would end rank 0 too
                signal.raise_signal(_queue_signal(place))  # to submitit, whose handler is back in force
        except submitit.core.utils.UncompletedJobError:
            print("error: LAUNCH.MAX_RETRY time-outs are over; submit it again to go on", file=sys.stderr, flush=True)
            leave(_SIGNALLED + _queue_signal(place))
        except Exception as error:
            report_error(error)
            if is_worker():
                end_by(*sys.exc_info())  # type: ignore[arg-type]
            raise
        if code not in (0, *QUEUE_AGAIN):
            leave(code)

    def checkpoint(self) -> Any:
        """What is to be done when the job is queued again: the same, since OUT_DIR says how far it is."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def _enter(place: Any) -> None:
    """This process's part in the job: its rank, where it reports errors, and SIGUSR1 as a request to queue again."""
    reports = errors_of(Path(place.paths.folder), place.job_id, os.environ.get("SLURM_RESTART_COUNT", "0"))
    reports.mkdir(parents=True, exist_ok=True)
    logging.getLogger("submitit").propagate = False  # it prints its lines itself
    os.environ[SUBMITTED] = place.job_id
    os.environ[ERROR_FILE] = str(reports / ERROR_NAME.format(rank=place.global_rank))
    signal.signal(signal.SIGUSR1, signal.getsignal(_queue_signal(place)))
    if place.cluster == "local" and place.num_tasks > 1:
        os.environ.update(RANK=str(place.global_rank), WORLD_SIZE=str(place.num_tasks),
                          LOCAL_RANK=str(place.local_rank), LOCAL_WORLD_SIZE=str(place.num_tasks))  # fmt: skip
        meet_at("127.0.0.1", meeting_port(int(place.job_id)))


def errors_of(folder: Path, job_id: str, attempt: str) -> Path:
    """Where the processes of a job's attempt report their errors."""
    return folder / f"{job_id}_errors" / attempt


def _queue_signal(place: Any) -> signal.Signals:
    return signal.Signals[f"SIG{place.USR_SIG}"]


def submit(cfg: CfgNode, mode: str, wait: bool, command: Callable[[Sequence[str]], int]) -> int:
    """Submit ``run_net.py --mode MODE`` as a job; all that can be wrong with it is said before.

    Args:
        cfg: the tree, with LAUNCH.MODE slurm or submitit_local.
        mode: train, test or time.
        wait: show rank 0's log until the job ends. A trial on this machine always does.
        command: what runs a command line, in the job too.

    Returns:
        0 when it was submitted, or has ended well, or the job's exit code when it was stopped.

    Raises:
        InputError: the configuration cannot work, or SLURM refuses the job.
        RunError: the job failed.
    """
    if _is_done(cfg, mode):
        return 0
    executor = _executor(cfg)
    out_dir = make_out_dir(cfg.OUT_DIR)
    path = out_dir.absolute() / FOLDER / f"config-{mode}.yaml"
    path.parent.mkdir(exist_ok=True)
    atomic_write(path, lambda file: file.write(config.dump(cfg).encode()))
    import submitit

    try:
        job = executor.submit(Job(("--mode", mode, "--cfg", str(path)), command))
    except submitit.core.utils.FailedJobError as error:
        raise InputError(f"sbatch refuses the job: {' '.join(str(error).split())}") from None
    nodes, tasks = layout(cfg)
    print(f"job {job.job_id}: {nodes} x {tasks} processes; log {job.paths.stdout}, errors {job.paths.stderr}", flush=True)
    if cfg.LAUNCH.MODE == "slurm" and not wait:
        return 0
    try:
        state = _follow(job, _local_state if cfg.LAUNCH.MODE == "submitit_local" else _slurm_state)
    except KeyboardInterrupt:
        if cfg.LAUNCH.MODE == "submitit_local":
            job.cancel()
        else:
            print(f"the job goes on; `scancel {job.job_id}` ends it", file=sys.stderr)
        return 130
    return _outcome(job, *state)


def _is_done(cfg: CfgNode, mode: str) -> bool:
    """Raises InputError for what would be found wrong when the job runs; whether there is nothing to do."""
    from pycls import build
    from pycls.run import setup, train

    if mode == "test" and not cfg.TEST.WEIGHTS:
        setup.best_in(cfg)
    if mode == "train":
        out_dir = make_out_dir(cfg.OUT_DIR)
        with setup.claim(out_dir):
            setup.refuse_other_config(cfg)
        if train.is_finished(cfg, out_dir):
            return True
    try:
        dataset = build.build_dataset(cfg, cfg.TRAIN.SPLIT)
    except InputError as error:
        print(f"warning: {error}; it is submitted all the same, since its machines may have the data", file=sys.stderr)
        return False
    classes = build.num_classes(cfg, dataset)
    build.build_model(cfg, dataset.channels, build.image_size(cfg, dataset), classes, dataset.labels)
    return False


def layout(cfg: CfgNode) -> tuple[int, int]:
    """(machines, processes on each)."""
    count = cfg.NUM_PROCS if cfg.DEVICE == "cpu" else cfg.NUM_GPUS
    return max(1, count // cfg.MAX_GPUS_PER_NODE), min(count, cfg.MAX_GPUS_PER_NODE)


def _executor(cfg: CfgNode) -> Any:
    try:
        import submitit
    except ImportError:
        raise InputError(f"LAUNCH.MODE {cfg.LAUNCH.MODE} needs submitit: pip install 'pycls-heads[slurm]'") from None
    folder = Path(cfg.OUT_DIR).absolute() / FOLDER
    nodes, tasks = layout(cfg)
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    if cfg.LAUNCH.MODE == "submitit_local":
        os.environ["PYTHONPATH"] = path
        executor: Any = submitit.LocalExecutor(folder, max_num_timeout=cfg.LAUNCH.MAX_RETRY)
        executor.update_parameters(timeout_min=cfg.LAUNCH.TIME_LIMIT, signal_delay_s=cfg.LAUNCH.SIGNAL_DELAY, nodes=nodes,
                                   tasks_per_node=tasks, gpus_per_node=0 if cfg.DEVICE == "cpu" else tasks)  # fmt: skip
        return executor
    try:
        executor = submitit.SlurmExecutor(folder, max_num_timeout=cfg.LAUNCH.MAX_RETRY)
    except RuntimeError:
        raise InputError("LAUNCH.MODE slurm: this machine has no SLURM commands; submit from one that has") from None
    setup = [*cfg.LAUNCH.SETUP, f"export PYTHONPATH={shlex.quote(path)}"]
    executor.update_parameters(**sbatch_options(cfg), setup=setup)
    return executor


def sbatch_options(cfg: CfgNode) -> dict[str, Any]:
    """What sbatch is told, as submitit's parameters; None where the cluster's default is to be left alone."""
    launch, on_gpus = cfg.LAUNCH, cfg.DEVICE != "cpu"
    nodes, tasks = layout(cfg)
    cpus = launch.CPUS_PER_GPU or cfg.NUM_THREADS or (1 + cfg.DATA_LOADER.NUM_WORKERS if on_gpus else 1)
    own = dict(line[2:].partition("=")[::2] for line in launch.SBATCH)
    mail = {"mail-user": launch.EMAIL, "mail-type": "END,FAIL"} if launch.EMAIL else {}
    return {
        "job_name": launch.NAME, "time": launch.TIME_LIMIT, "signal_delay_s": launch.SIGNAL_DELAY, "nodes": nodes,
        "ntasks_per_node": tasks, "cpus_per_task": cpus, "gres": f"{launch.GRES}:{tasks}" if on_gpus else None,
        "mem": f"{launch.MEM_PER_GPU * tasks * 1024:.0f}M" if launch.MEM_PER_GPU else None,
        "partition": launch.PARTITION or None, "account": launch.ACCOUNT or None, "qos": launch.QOS or None,
        "exclude": launch.EXCLUDE or None,
        "constraint": "&".join(filter(None, [launch.GPU_TYPE, launch.CONSTRAINT])) or None,
        "comment": launch.COMMENT or None, "wckey": None,
        "additional_parameters": {"requeue": True, **mail, **{key: value or True for key, value in own.items()}},
        # srun does not take the cores of a task over from sbatch (since SLURM 22.05), nor ends tasks when one fails
        "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={cpus}"],
    }  # fmt: skip


State = tuple[str, int]
"""A job's state and exit code."""


def _follow(job: Any, look: Callable[[Any], State | None]) -> State:
    """Show rank 0's output until the job is over, through all its attempts."""
    shown = {job.paths.stdout: sys.stdout, job.paths.stderr: sys.stderr}
    places = dict.fromkeys(shown, 0)
    pause, seen_over = POLL_S[0], False
    while True:
        state = look(job)
        for path, stream in shown.items():
            places[path] = _show_from(path, places[path], stream)
        if state is not None and seen_over:  # twice: a job that is about to be queued again looks as if it were over
            return state
        seen_over = state is not None
        time.sleep(pause)
        pause = POLL_S[0] if seen_over else min(POLL_S[1], pause * 1.1)


def _show_from(path: Path, place: int, stream: Any) -> int:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            file.seek(place)
            stream.write(file.read())
            stream.flush()
            return file.tell()
    except FileNotFoundError:
        return place


def _local_state(job: Any) -> State | None:
    if not job.done():
        return None
    ended_well = job.paths.result_pickle.exists()  # written by a task that did not leave with a code
    return ("COMPLETED", 0) if ended_well else ("FAILED", 1)


def _slurm_state(job: Any) -> State | None:
    """From the controller, which, unlike the accounting, is always there."""
    shown = subprocess.run(["scontrol", "show", "job", "-o", job.job_id], capture_output=True, text=True)
    fields = dict(word.partition("=")[::2] for word in shown.stdout.split())
    state = fields.get("JobState", _FORGOTTEN)
    if state not in (*_OVER, _FORGOTTEN):
        return None
    if state == _FORGOTTEN and "Invalid job id" not in shown.stderr:
        return None  # the controller is busy or away
    return state, int(fields.get("ExitCode", "0:0").split(":")[0])


def _outcome(job: Any, state: str, code: int) -> int:
    """The exit code of a job that is over; its first cause as an error."""
    if state == "COMPLETED" or (state == _FORGOTTEN and job.paths.result_pickle.exists()):
        return 0
    attempts = sorted(errors_of(Path(job.paths.folder), job.job_id, "").glob("*"), key=lambda path: int(path.name))
    cause = first_cause(read_reports(attempts[-1])) if attempts else None
    if cause is not None and cause.type == "InputError":
        raise InputError(cause.message)
    if cause is not None:
        raise RunError(f"{cause.who} failed: {cause.message}")
    if code in STOPPED:
        return code
    raise RunError(f"job {job.job_id} ended as {state} with exit code {code}; see {job.paths.stderr}")
