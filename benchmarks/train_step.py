"""Our whole training step beside a bare hand-written PyTorch loop, in one run.

    python benchmarks/train_step.py [--repeats N] [--threads N] [--only lenet5|resnet20] [--busy] [--quick]

Ours is the loop of ``--mode train`` with the objects that it builds: learning rate and generator set at every step, the
head as a part of the model, meters, finite-loss check, log file, TensorBoard, progress; the moving average is off, and
so are evaluation and checkpoints, which are no part of a step. The bare loop is what one writes by hand on the same
backbone: forward, ``nn.Linear``, ``F.cross_entropy``, backward, a fused SGD step, nothing else. Both have the same
initial weights and read the same batches from a loader of their own of the same kind, channels-last where ours is, so
the loader's work is in both. So is freed memory that is kept (``pycls.runtime.memory``), without which the bare loop
would take up to half as long again on a CPU, in some epochs and not in others. The limit beside them is the bare step on
one batch that is already there: the arithmetic alone. The images are random: time does not depend on what they show.
"""

import contextlib
import io
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from common import Job, clock_of, parse, parser, setting, shown_seconds, shown_spread, side_by_side, table, verdict
from torch import nn

from pycls import build, config, training
from pycls.data.dataset import ArrayDataset
from pycls.engine.trainer import Trainer
from pycls.runtime.distributed import Ranks
from pycls.runtime.log import setup_logging
from pycls.runtime.memory import keep_freed_memory

GOAL = 0.97


@dataclass(frozen=True)
class Case:
    """A model, its images and how many of them.

    Attributes:
        title: for the table.
        overrides: of the options.
        channels: of an image.
        side: of an image, pixels.
        batch: images a step.
        steps: of a measurement, an epoch of the data.
    """

    title: str
    overrides: tuple[str, ...]
    channels: int
    side: int
    batch: int
    steps: int


CASES = {
    "lenet5": Case("LeNet-5, 28x28, batch 256", ("MODEL.TYPE=lenet5", "TRAIN.DATASET=mnist"), 1, 28, 256, 50),
    "resnet20": Case("ResNet-20, 32x32, batch 128", ("MODEL.TYPE=resnet", "MODEL.DEPTH=20", "TRAIN.DATASET=cifar10"),
                     3, 32, 128, 10),
}  # fmt: skip


def random_images(case: Case) -> ArrayDataset:
    """An epoch of random images in ten classes, with crop and, of colour images, flip."""
    generator = torch.Generator().manual_seed(0)
    n, colour = case.steps * case.batch, case.channels == 3
    images = torch.randint(0, 256, (n, case.channels, case.side, case.side), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (n,), generator=generator)
    return ArrayDataset(
        name="random", labels=labels, class_names=[str(i) for i in range(10)], channels=case.channels,
        image_size=case.side, mean=(0.5,) * case.channels, std=(0.25,) * case.channels,
        crop_padding=4 if colour else 2, hflip=colour, images=images,
    )  # fmt: skip


def our_trainer(case: Case, dataset: ArrayDataset, out_dir: Path, epochs: int) -> tuple[Trainer, config.CfgNode]:
    """The trainer that ``--mode train`` makes, and its options. It never saves: a checkpoint is no part of a step."""
    cfg = config.load(None, [*case.overrides, f"TRAIN.BATCH_SIZE={case.batch}", "TRAIN.EVAL_SPLIT=none",
                             "OPTIM.EMA_UPDATE_PERIOD=0", "OPTIM.BASE_LR=0.01", f"OPTIM.MAX_EPOCH={epochs}",
                             f"OUT_DIR={out_dir}"])  # fmt: skip
    classes, device, ranks = dataset.num_classes, torch.device("cpu"), Ranks()
    model = training.first_model(cfg, dataset, classes, device, ranks)
    trainer = training.make_trainer(cfg, model, dataset, classes, device, ranks, config.dump(cfg))
    trainer.save = lambda best=False: None  # type: ignore[method-assign]
    return trainer, cfg


class Bare:
    """The loop written by hand."""

    def __init__(self, cfg: config.CfgNode, case: Case, dataset: ArrayDataset) -> None:
        torch.manual_seed(cfg.RNG_SEED)
        model = build.build_model(cfg, dataset.channels, case.side, dataset.num_classes, dataset.labels)
        linear = nn.Linear(model.backbone.feature_dim, dataset.num_classes)
        linear.load_state_dict({"weight": model.head.weight, "bias": model.head.bias})
        order = torch.channels_last if cfg.MODEL.CHANNELS_LAST else torch.contiguous_format
        self.net = nn.Sequential(model.backbone, linear).to(memory_format=order).train()  # type: ignore[call-overload]
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=cfg.OPTIM.BASE_LR, momentum=cfg.OPTIM.MOMENTUM,
                                         nesterov=cfg.OPTIM.NESTEROV, weight_decay=cfg.OPTIM.WEIGHT_DECAY,
                                         fused=True)  # fmt: skip
        self.loader = build.build_train_loader(cfg, dataset, torch.device("cpu"), Ranks())
        self.epochs, self.steps = 0, case.steps
        self.batch = next(iter(self.loader.epoch(0)))

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        loss = F.cross_entropy(self.net(images), labels)
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


def measure(case: Case, repeats: int, busy: bool) -> list[list[str]]:
    """The rows of a case."""
    dataset = random_images(case)
    with run_folder() as folder:
        trainer, cfg = our_trainer(case, dataset, folder, repeats + 2)
        bare = Bare(cfg, case, dataset)
        jobs: dict[str, Job] = {"ours": our_epoch(trainer), "bare loop": bare.epoch, "arithmetic alone": bare.arithmetic}
        beside = {"ours": "bare loop", "arithmetic alone": "bare loop"}
        found = side_by_side(jobs, beside, repeats, clock_of("cpu", busy), least_s=0.0)
        trainer.reporter.board.close()
    rows = []
    for name in ("bare loop", "ours", "arithmetic alone"):
        measured = found[name]
        step = measured.second / case.steps
        cells = ["", "", "", ""]
        if measured.ratios:
            ratios = [1 / ratio for ratio in measured.ratios]  # of speed, not of time
            measured.ratios = ratios
            goal = verdict(measured.ratio, GOAL if name == "ours" else None, at_least=True)
            cells = [f"{measured.ratio:.3f}", shown_spread(measured.spread), *goal]
        rows.append([name, shown_seconds(step), f"{case.batch / step:,.0f}", *cells])
    return rows


def main() -> None:
    options = parser("Our training step beside a bare PyTorch loop.", repeats=15)
    options.add_argument("--only", choices=CASES, help="one of the two models")
    arguments = parse(options)
    keep_freed_memory()
    cases = [CASES[arguments.only]] if arguments.only else list(CASES.values())
    print(setting())
    print(f"{arguments.repeats} rounds, each an epoch of random images in turn; both loops read from a loader of a kind\n")
    for case in cases:
        if arguments.quick:
            case = Case(case.title, case.overrides, case.channels, case.side, case.batch // 32, 2)
        rows = measure(case, arguments.repeats, arguments.busy)
        print(table([case.title, "a step", "img/s", "of the bare loop", "quartiles", "goal", ""], rows), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
