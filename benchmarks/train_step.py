"""The whole training step compared with a bare PyTorch loop and timm's training script in one run.

    python benchmarks/train_step.py [--repeats N] [--threads N] [--only lenet5|resnet20|resnet18] [--by-step] [--busy] [--quick]
    python benchmarks/train_step.py --device cuda [--repeats N] [--only resnet50|resnet18_cifar] [--eager] [--quick]

pycls's is the loop of ``--mode train`` with the objects that it builds: learning rate and generator set at every step, the
head as a part of the model, meters, finite-loss check, log file, TensorBoard, progress; without moving average, evaluation
and checkpoints, which are not part of a step. The bare loop, on the same backbone, has only forward, ``nn.Linear``,
``F.cross_entropy``, backward and a fused SGD step. Both have the same initial weights and read the same batches from separate
loaders of the same kind, in the same memory format, so both include the loader's work. Both keep freed memory
(``pycls.runtime.memory``), without which the bare loop would take up to 1.5 times as long on a CPU, in some epochs and not
in others. The limit is the bare step on one batch in memory: only the arithmetic. The images are random: time does not
depend on their content.

On a GPU both sides are compiled (``torch.compile``, unless --eager), use bf16 autocast and channels-last, and are timed with
events in the GPU's stream; the images are in GPU memory. Compilation is finished before the first round.

A round is an epoch of each, some seconds long, in which other load on the machine may change. With ``--by-step`` pycls and the
bare loop alternate after every step instead: forward, backward, optimiser and, for pycls, meters, without loader and log.

On the CPU, with colour images, timm is measured right after pycls: its loop as in its train.py (timm_step.py), once with its
own loader and transforms, once with batches of a loader like pycls's, which is the step alone; ResNet-18 is timm's;
ResNet-20, which timm does not have, is the network of the bare loop.
"""

import contextlib
import io
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from common import Job, clock_of, parse, parser, setting, shown_seconds, shown_spread, side_by_side, table, verdict
from torch import nn
from train_cases import CASES, GPU_CASES, Case, random_images

from pycls import build, config
from pycls.data.dataset import ArrayDataset
from pycls.engine.trainer import Trainer
from pycls.run import trainers
from pycls.run.context import RunContext
from pycls.runtime.devices import choose_device, set_deterministic
from pycls.runtime.distributed import Ranks
from pycls.runtime.log import setup_logging
from pycls.runtime.memory import keep_freed_memory


def our_trainer(
    case: Case, dataset: ArrayDataset, out_dir: Path, epochs: int, device: torch.device
) -> tuple[Trainer, config.CfgNode]:
    """The trainer that ``--mode train`` makes, and its options. It never saves: a checkpoint is no part of a step."""
    cfg = config.load(None, [*case.overrides, f"TRAIN.IM_SIZE={case.side}", f"TRAIN.BATCH_SIZE={case.batch}",
                             "TRAIN.EVAL_SPLIT=none", "OPTIM.EMA_UPDATE_PERIOD=0", "OPTIM.BASE_LR=0.01",
                             f"OPTIM.MAX_EPOCH={epochs}", f"OUT_DIR={out_dir}"])  # fmt: skip
    run = RunContext(cfg, dataset, dataset.num_classes, device, Ranks())
    trainer = trainers.make_trainer(run, trainers.first_model(run), config.dump(cfg))
    trainer.save = lambda best=False: None  # type: ignore[method-assign]
    return trainer, cfg


def plain_net(cfg: config.CfgNode, case: Case, dataset: ArrayDataset) -> nn.Sequential:
    """Our backbone and an ``nn.Linear``, with the weights that ours begins with."""
    torch.manual_seed(cfg.RNG_SEED)
    model = build.build_model(cfg, dataset.channels, case.side, dataset.num_classes, dataset.labels)
    linear = nn.Linear(model.backbone.feature_dim, dataset.num_classes)
    linear.load_state_dict({"weight": model.head.weight, "bias": model.head.bias})
    return nn.Sequential(model.backbone, linear)


class Bare:
    """The loop written by hand."""

    def __init__(self, cfg: config.CfgNode, case: Case, dataset: ArrayDataset, device: torch.device) -> None:
        order = torch.channels_last if cfg.MODEL.CHANNELS_LAST else torch.contiguous_format
        self.net = plain_net(cfg, case, dataset).to(device, memory_format=order).train()  # type: ignore[call-overload]
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=cfg.OPTIM.BASE_LR, momentum=cfg.OPTIM.MOMENTUM,
                                         nesterov=cfg.OPTIM.NESTEROV, weight_decay=cfg.OPTIM.WEIGHT_DECAY,
                                         fused=True)  # fmt: skip
        self.run = torch.compile(self.net) if cfg.MODEL.COMPILE else self.net
        self.device, self.autocast = device.type, build.autocast_dtype(cfg)
        self.loader = build.build_train_loader(cfg, dataset, device, Ranks())
        self.epochs, self.steps = 0, case.steps
        self.batch = next(iter(self.loader.epoch(0)))

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        with torch.autocast(self.device, dtype=self.autocast, enabled=self.autocast is not None):
            loss = F.cross_entropy(self.run(images), labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def epoch(self) -> None:
        """One pass over the data."""
        for images, labels, _ in self.loader.epoch(self.epochs):
            self.step(images, labels)
        self.epochs += 1

    def arithmetic(self) -> None:
        """As many steps on one batch."""
        for _ in range(self.steps):
            self.step(self.batch.images, self.batch.labels)


def has_timm() -> bool:
    """Whether it can be imported."""
    try:
        import timm  # noqa: F401
    except ImportError:
        return False
    return True


def timm_jobs(cfg: config.CfgNode, case: Case, dataset: ArrayDataset) -> dict[str, Job]:
    """timm's loop by what it reads from; none where it is not installed, for images without colours, or in mixed precision."""
    if case.channels != 3 or cfg.TRAIN.MIXED_PRECISION or not has_timm():
        return {}
    import timm
    from timm_step import TimmLoop, its_loader

    same = build.build_train_loader(cfg, dataset, torch.device("cpu"), Ranks())

    def our_kind(number: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return ((batch.images, batch.labels) for batch in same.epoch(number))

    jobs: dict[str, Job] = {}
    for name, epochs in (("timm, its loader", its_loader(dataset, case.batch, torch.get_num_threads())),
                         ("timm, a loader of our kind", our_kind)):  # fmt: skip
        net = timm.create_model(case.timm, num_classes=dataset.num_classes) if case.timm else plain_net(cfg, case, dataset)
        jobs[name] = TimmLoop(net, epochs, case.steps, cfg.OPTIM.BASE_LR, cfg.OPTIM.WEIGHT_DECAY).epoch
    return jobs


def our_epoch(trainer: Trainer) -> Job:
    """One epoch of the trainer a call."""

    def job() -> None:
        trainer.settings.max_epoch = trainer.epoch + 1
        trainer.fit()

    return job


@contextlib.contextmanager
def run_folder() -> Iterator[Path]:
    """A folder for one run's log, which is written as in any run; what goes to the terminal is formatted and dropped."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        setup_logging(folder)
        try:
            yield Path(folder)
        finally:
            setup_logging()  # to the terminal alone: the file is closed


def timings(case: Case, repeats: int, device: torch.device, busy: bool, by_step: bool = False) -> list[list[str]]:
    """The rows of a case."""
    dataset = random_images(case)
    with run_folder() as folder:
        trainer, cfg = our_trainer(case, dataset, folder, 3 * repeats + 6, device)
        bare = Bare(cfg, case, dataset, device)
        jobs: dict[str, Job] = {"ours": our_epoch(trainer), "bare loop": bare.epoch, "arithmetic alone": bare.arithmetic}
        beside = {"ours": "bare loop", "arithmetic alone": "bare loop"}
        theirs = timm_jobs(cfg, case, dataset) if device.type == "cpu" and not by_step else {}
        if by_step:
            case, beside = replace(case, steps=1), {"ours": "bare loop"}
            images, labels, _ = bare.batch
            trainer.model.train()
            jobs = {"ours": lambda: trainer._step(images, labels), "bare loop": lambda: bare.step(images, labels)}
        jobs, beside = jobs | theirs, beside | dict.fromkeys(theirs, "ours")
        found = side_by_side(jobs, beside, repeats, clock_of(device.type, busy), least_s=0.0)
        trainer.reporter.tensorboard.close()
    rows = []
    for name in ("bare loop", "ours", *theirs, *(["arithmetic alone"] if not by_step else [])):
        measured = found[name]
        step = measured.second / case.steps
        cells = ["", "", "", "", ""]
        if measured.ratios:
            measured.ratios = [1 / ratio for ratio in measured.ratios]  # of speed, not of time
            goal = verdict(measured.ratio, case.goal, at_least=True) if name == "ours" else ("", "")
            goal = verdict(measured.ratio, 1.0) if name in theirs else goal
            cells = [f"{measured.ratio:.3f}", beside[name], shown_spread(measured.spread), *goal]
        rows.append([name, shown_seconds(step), f"{case.batch / step:,.0f}", *cells])
    return rows


def main() -> None:
    options = parser("Our training step beside a bare PyTorch loop.", repeats=15)
    options.add_argument("--only", choices=[*CASES, *GPU_CASES], help="one of the models")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where (cpu)")
    options.add_argument("--by-step", action="store_true", help="take turns after every step: without loader and log")
    options.add_argument("--eager", action="store_true", help="without torch.compile")
    arguments = parse(options)
    device = choose_device(arguments.device)
    if device.type == "cuda":
        set_deterministic(device, deterministic=False, cudnn_benchmark=True)  # as in a run, and for both sides
    else:
        keep_freed_memory()
    cases = GPU_CASES if device.type == "cuda" else CASES
    if arguments.only:
        cases = {arguments.only: (CASES | GPU_CASES)[arguments.only]}
    print(setting(device.type))
    if device.type == "cpu" and not has_timm():
        print("timm is not installed: its rows are left out")
    turns = "a step on one batch" if arguments.by_step else "an epoch of random images"
    beside = "" if arguments.by_step else "; ours and bare read from loaders of a kind"
    print(f"{arguments.repeats} rounds, each {turns} in turn{beside}\n")
    for case in cases.values():
        if arguments.eager:
            case = case.eager()
        if arguments.quick:
            case = case.tiny()
        rows = timings(case, arguments.repeats, device, arguments.busy, arguments.by_step)
        header = [case.title, "a step", "img/s", "speed", "of that of", "quartiles", "goal", ""]
        print(table(header, rows), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
