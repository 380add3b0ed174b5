"""A run's trainers: that of the training, and that of a second stage on its frozen backbone."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

import pycls
from pycls import build, config, zoo
from pycls.engine import decouple
from pycls.engine.checkpoint.checkpoints import load_model_state, load_together
from pycls.engine.checkpoint.entries import check_checkpoint
from pycls.engine.checkpoint.resumable import check_progress, check_tensors
from pycls.engine.checkpoint.state_file import better_weights
from pycls.engine.evaluate import precise_batch_norm
from pycls.engine.trainer import Trainer
from pycls.errors import InputError, RunError
from pycls.heads.head import Head
from pycls.models.classifier import Classifier
from pycls.models.pretrained import load_into
from pycls.report.reporter import Reporter
from pycls.report.tensorboard import TensorBoardLogger
from pycls.run import setup
from pycls.run.context import RunContext
from pycls.runtime.devices import has_fast_bf16

logger = logging.getLogger(__name__)


def first_model(run: RunContext) -> Classifier:
    """The model as the training begins with it."""
    cfg, model = run.cfg, _new_model(run)
    if cfg.TRAIN.WEIGHTS:
        load_into(model, zoo.load(cfg.TRAIN.WEIGHTS), new_head=True, class_names=run.dataset.class_names,
                      data=cfg.TRAIN.DATASET)  # fmt: skip
    build.shard_model(cfg, model, run.ranks)
    return build.place(cfg, model, run.device)


def _new_model(run: RunContext, storage: bool = True) -> Classifier:
    torch.manual_seed(run.cfg.RNG_SEED)
    size = build.image_size(run.cfg, run.dataset)
    return build.build_model(run.cfg, run.dataset.channels, size, run.classes, run.dataset.labels, storage)


def make_trainer(run: RunContext, model: Classifier, written: str) -> Trainer:
    """Everything that the training of a stage is made of.

    Args:
        run: the stage.
        model: on its device.
        written: the run's configuration as its checkpoints keep it.
    """
    cfg, dataset, classes, device, ranks = run.cfg, run.dataset, run.classes, run.device, run.ranks
    out_dir, loader = Path(cfg.OUT_DIR), build.build_train_loader(cfg, dataset, device, ranks)

    def before_evaluation(epoch: int) -> None:
        if cfg.BN.USE_PRECISE_STATS and not model.frozen_statistics:
            precise_batch_norm(model, loader.epoch(epoch), cfg.BN.NUM_SAMPLES_PRECISE, ranks.world_size)

    return Trainer(
        model=model,
        network=build.build_network(model, device, ranks, cfg.PARALLEL.MODE == "fsdp", cfg.PARALLEL.STATIC_GRAPH),
        optimizer=build.build_optimizer(cfg, model),
        schedule=build.build_schedule(cfg),
        loader=loader,
        ema=build.build_ema(cfg, model),
        mix=build.build_mix(cfg, ranks),
        evaluate=build.build_evaluator(cfg, classes, device, ranks),
        before_evaluation=before_evaluation,
        choose_best=cfg.TRAIN.EVAL_SPLIT == "val",
        checkpoints=setup.checkpoints(cfg),
        settings=build.build_settings(cfg, classes, ranks),
        device=device,
        ranks=ranks,
        reporter=Reporter(TensorBoardLogger(out_dir / "tensorboard", cfg.TENSORBOARD and ranks.is_main), ranks.is_main,
                          cfg.OPTIM.MAX_EPOCH, len(loader), cfg.TRAIN.BATCH_SIZE, cfg.TRAIN.EVAL_SPLIT),
        extra={"config": written, "versions": {"pycls": pycls.__version__, "torch": torch.__version__},
               "class_names": list(dataset.class_names),
               "class_counts": build.class_counts(dataset.labels, classes).tolist()},
        sample_log=_sample_log(out_dir, ranks.rank) if cfg.LOG_SAMPLES else None,
        head_stats=build.build_head_stats(model) if ranks.is_main else None,
    )  # fmt: skip


def resume(cfg: CfgNode, trainer: Trainer) -> None:
    """Continues from the newest checkpoint, if there is one."""

    def check(state: dict[str, Any], source: str) -> None:
        has_ema = trainer.ema is not None
        check_progress(state, source, has_ema, cfg.OPTIM.MAX_EPOCH, len(trainer.loader))
        setup.refuse_other_data(cfg, state["config"])
        setup.refuse_other_classes(cfg, state.get("class_names"), trainer.extra["class_names"])
        check_tensors(state, source, trainer.model, has_ema, trainer.optimizer, trainer.scaler)

    state = trainer.checkpoints.newest(trainer.ranks, check)
    if state is None:
        return
    trainer.load_state_dict(state, str(trainer.checkpoints.folder))
    trainer.reporter.tensorboard.purge_step = trainer.step
    logger.info("continuing from epoch %d, step %d of %d", trainer.epoch + 1, trainer.start, len(trainer.loader))


def announce(run: RunContext, trainer: Trainer) -> None:
    """What is about to be trained, and what is to be warned of."""
    cfg, dataset, classes, device = run.cfg, run.dataset, run.classes, run.device
    logger.info("%s on %s: %d training images, %d classes, %s parameters, %s", run.title, dataset.name, len(dataset),
                classes, f"{sum(p.numel() for p in trainer.model.parameters()):,}", device)  # fmt: skip
    if trainer.settings.autocast is not None and device.type == "cpu" and not has_fast_bf16(device):
        logger.warning("this CPU has no bf16 units: TRAIN.MIXED_PRECISION makes training about ten times slower here")
    if isinstance(trainer.model.head, Head):
        backend, reason = trainer.model.head.backend
        logger.info("head computed by the %s backend: %s", backend.name, reason)
    absent = build.absent_classes(build.class_counts(dataset.labels, classes), dataset.class_names)
    for warning in (*([absent] if absent else []), *build.head_warnings(trainer.model), *_too_much(cfg, trainer, dataset)):
        logger.warning(warning)
    if cfg.TRAIN.EVAL_SPLIT == "test":
        logger.info("evaluating on the test part in training: shown, but the best epoch is not chosen on it")


def _too_much(cfg: CfgNode, trainer: Trainer, dataset: build.Dataset) -> Iterator[str]:
    """Options that ask for more than the training has, and so have no effect or not their whole one."""
    steps, most = cfg.OPTIM.MAX_EPOCH * len(trainer.loader), int(dataset.labels.bincount().max())
    warmup, period = cfg.HEAD.MARGIN_WARMUP, cfg.OPTIM.EMA_UPDATE_PERIOD
    images, in_a_row = cfg.TRAIN.IMAGES_PER_CLASS, cfg.TRAIN.SAMPLES_PER_CLASS
    if warmup and getattr(trainer.model.head, "margin", None) is None:
        yield f"HEAD.MARGIN_WARMUP has no effect: the head {cfg.HEAD.NAME or cfg.HEAD.SIMILARITY.NAME} has no margin"
    elif warmup > steps > 0:
        yield f"HEAD.MARGIN_WARMUP is {warmup}, and the training has {steps} steps: the margin never has its full size"
    if period > steps > 0:
        yield f"OPTIM.EMA_UPDATE_PERIOD is {period}, and the training has {steps} steps: nothing is averaged"
    if images > most and cfg.DATA.LONG_TAIL.PROFILE == "none":
        yield f"TRAIN.IMAGES_PER_CLASS {images} has no effect: the largest class has {most} images"
    if in_a_row > most and cfg.TRAIN.SAMPLER == "class_aware":
        yield f"TRAIN.SAMPLES_PER_CLASS is {in_a_row}, and the largest class has {most} images: not every class is shown"


def choose_weights(trainer: Trainer) -> tuple[int, str, bool]:
    """Gives the model the best checkpoint's weights, or leaves it the last ones if there is none; all processes call it.

    Returns:
        Epochs that they were trained, ``"model"`` or ``"ema"``, and whether they were chosen as the best.
    """
    best = trainer.checkpoints.best()
    if best is not None:
        try:
            state = load_together(best, trainer.ranks)
            check_checkpoint(state, str(best))
            which = better_weights(state)
            load_model_state(trainer.model, state[which], str(best))
            return state["epoch"], which, True
        except InputError as error:
            logger.error("%s; going on with the last weights, which are not the best ones", error)
    which = better_weights({"ema": trainer.ema, "history": trainer.history})
    if trainer.ema is not None and which == "ema":
        trainer.model.load_state_dict(trainer.ema.model.state_dict())
    return trainer.epoch, which, False


# --- the second stage


def check_second_stage(run: RunContext, model: Classifier) -> None:
    """Raises InputError for a second stage that could not be, before the first one begins."""
    method, later = run.cfg.STAGE2.METHOD, run.last_stage()
    if method == "none":
        return
    _new_model(later, storage=False)
    build.build_train_loader(later.cfg, run.dataset, torch.device("cpu"), run.ranks)
    build.build_settings(later.cfg, run.classes, run.ranks)
    if method in ("lws", "tau_norm") and not decouple.is_linear(model.head):
        raise InputError(f"STAGE2.METHOD {method} starts from a linear head, and {run.title} is another")


def second_model(run: RunContext, first: dict[str, torch.Tensor]) -> Classifier:
    """The model as the second stage begins with it: the first stage's backbone, frozen, and the method's head.

    Args:
        run: the whole run.
        first: the first stage's weights.
    """
    cfg, dataset, classes, device, ranks = run.cfg, run.dataset, run.classes, run.device, run.ranks
    later, method = config.last_stage(cfg), cfg.STAGE2.METHOD
    model = _new_model(run.last_stage())
    kept = {name: value for name, value in model.state_dict().items() if name.startswith("head.")}
    load_model_state(model, kept | {n: v for n, v in first.items() if n.startswith("backbone.")}, "the first stage")
    model = build.place(later, model, device)
    model.freeze_backbone(cfg.STAGE2.FREEZE_BN)
    weight, bias = first.get("head.similarity.weight"), first.get("head.similarity.bias")
    if method == "lws":
        decouple.keep_classifier(model.head.similarity, weight, bias)
    elif method == "ncm":
        images = build.build_eval_loader(later, dataset, cfg.TRAIN.SPLIT, device, ranks)
        means = decouple.class_means(model, images, classes, device)
        decouple.set_weight(model.head.similarity, means)
    elif method == "tau_norm":
        assert weight is not None
        tau = cfg.STAGE2.TAU
        if tau < 0:
            val = build.build_dataset(cfg, cfg.TRAIN.EVAL_SPLIT)
            images = build.build_eval_loader(later, val, cfg.TRAIN.EVAL_SPLIT, device, ranks)
            present = build.class_counts(dataset.labels, classes) > 0
            tau = decouple.choose_tau(model, weight.to(device), images, present.to(device))
            logger.info("tau %.1f has the lowest error on %s, averaged over the classes", tau, cfg.TRAIN.EVAL_SPLIT)
        decouple.set_weight(model.head.similarity, decouple.tau_normalised(weight, tau))
    return model


def _sample_log(out_dir: Path, rank: int) -> Callable[[int, torch.Tensor], None]:
    path = out_dir / f"samples_rank{rank}.txt"

    def write(step: int, ids: torch.Tensor) -> None:
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(f"{step}: {' '.join(map(str, ids.tolist()))}\n")
        except OSError as error:
            raise RunError(f"cannot write {path}: {error.strerror}") from error

    return write
