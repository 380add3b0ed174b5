"""What the command line does: train, test, time and describe, each a straight story."""

import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

import pycls
from pycls import build, config
from pycls.data.mix import mix
from pycls.engine import plots, reports
from pycls.engine.checkpoints import Checkpoints, load_model_state, model_state
from pycls.engine.ema import Ema
from pycls.engine.evaluate import Evaluation, evaluate, precise_batch_norm
from pycls.engine.state_file import better_weights, load_state, load_weights, save_weights
from pycls.engine.timing import time_steps
from pycls.engine.trainer import Settings, Stopped, Trainer
from pycls.errors import InputError
from pycls.models.complexity import complexity
from pycls.runtime.board import Board
from pycls.runtime.devices import choose_device, has_fast_bf16, set_deterministic, set_threads
from pycls.runtime.distributed import Ranks, barrier, destroy, init_process_group_from_env, ranks_from_env
from pycls.runtime.files import RunLock, atomic_write, make_out_dir, remove_temporaries
from pycls.runtime.launch import launch_local
from pycls.runtime.log import log_json_stats, setup_logging
from pycls.runtime.worker import LAUNCHER_PID, is_worker

logger = logging.getLogger(__name__)

CONFIG, RESULT = "config.yaml", "result.json"


def train(cfg: CfgNode) -> int:
    """Trains, or continues, the run in OUT_DIR; then tests its best weights. Returns the exit code."""
    out_dir = make_out_dir(cfg.OUT_DIR)
    with _claim(out_dir):
        if not is_worker():
            _refuse_other_config(out_dir, cfg)
            if (out_dir / RESULT).is_file() and _checkpoints(cfg, out_dir).steps():
                print(f"the run in {out_dir} is finished:\n\n{reports.table(reports.read(out_dir / RESULT))}")
                return 0
            if _processes(cfg) > 1:
                return launch_local(_processes(cfg))
        try:
            with _process_group(cfg) as (device, ranks):
                _train(cfg, out_dir, device, ranks)
        except Stopped as stopped:
            return stopped.exit_code
    return 0


def _train(cfg: CfgNode, out_dir: Path, device: torch.device, ranks: Ranks) -> None:
    dataset = build.build_dataset(cfg, cfg.TRAIN.SPLIT)
    classes = build.num_classes(cfg, dataset)
    torch.manual_seed(cfg.RNG_SEED)
    model = build.build_model(cfg, dataset.channels, build.image_size(cfg, dataset), classes, dataset.labels)
    if cfg.TRAIN.WEIGHTS:
        load_model_state(model, load_weights(cfg.TRAIN.WEIGHTS)[0], cfg.TRAIN.WEIGHTS)
    model = _place(cfg, model, device)
    loader = build.build_train_loader(cfg, dataset, device, ranks)
    top_k = min(cfg.TEST.TOP_K, classes)
    judge = _judge(cfg, classes, top_k, device, ranks)
    setup_logging(out_dir, ranks.rank)
    checkpoints = _checkpoints(cfg, out_dir)
    state = checkpoints.newest()
    if ranks.is_main:
        remove_temporaries(out_dir)
        atomic_write(out_dir / CONFIG, lambda file: file.write(config.dump(cfg).encode()))
    _warn(cfg, device)
    trainer = Trainer(
        model=model,
        network=_parallel(model, device, ranks),
        optimizer=build.build_optimizer(cfg, model),
        schedule=build.build_schedule(cfg),
        loader=loader,
        ema=_ema(cfg, model),
        mix=_mixer(cfg, ranks),
        evaluate=judge,
        before_evaluation=lambda: _precise(cfg, model, loader, trainer.epoch, ranks),
        choose_best=cfg.TRAIN.EVAL_SPLIT == "val",
        checkpoints=checkpoints,
        settings=_settings(cfg, top_k),
        device=device,
        ranks=ranks,
        board=Board(out_dir / "tensorboard", cfg.TENSORBOARD and ranks.is_main, _step(state, len(loader)) if state else None),
        extra={"config": config.dump(cfg), "versions": {"pycls": pycls.__version__, "torch": torch.__version__}},
        sample_log=_sample_log(out_dir, ranks.rank) if cfg.LOG_SAMPLES else None,
    )
    if state is not None:
        trainer.load_state_dict(state, str(checkpoints.folder))
        logger.info("continuing after epoch %d, step %d of %d", trainer.epoch, trainer.start, len(loader))
    logger.info("%s with a %s head on %s: %d training images, %d classes, %s parameters, %s", cfg.MODEL.TYPE,
                cfg.HEAD.NAME or cfg.HEAD.SIMILARITY.NAME, cfg.TRAIN.DATASET, len(dataset), classes,
                f"{sum(p.numel() for p in model.parameters()):,}", device)  # fmt: skip
    trainer.fit()
    barrier()
    _finish(cfg, out_dir, trainer, dataset, device, ranks)
    trainer.board.close()


def _finish(cfg: CfgNode, out_dir: Path, trainer: Trainer, dataset: build.Dataset, device: torch.device,
            ranks: Ranks) -> None:  # fmt: skip
    """Tests the best weights (the last where none could be chosen), and writes what a person wants to see."""
    best = trainer.checkpoints.best()
    if best is not None:
        state: dict[str, Any] = load_state(best)
    else:
        state = trainer.state_dict()
    which = better_weights(state)
    load_model_state(trainer.model, state[which], str(best))
    result = {
        "epoch": state["epoch"], "weights": which, "chosen_on": cfg.TRAIN.EVAL_SPLIT if best else None,
        "history": trainer.history,
    }  # fmt: skip
    test_set, split = _test_set(cfg)
    test_loader = build.build_eval_loader(cfg, test_set, device, ranks)
    classes = trainer.model.head.similarity.num_classes
    tested = evaluate(trainer.model, test_loader, Evaluation(classes, cfg.TEST.TOP_K, device))
    if not ranks.is_main:
        return
    result |= {"test": tested, "test_set": test_set.name, "test_split": split, "class_names": list(dataset.class_names)}
    about = {"config": config.dump(cfg), "class_names": list(dataset.class_names), "top1_err": tested["top1_err"],
             "mean": list(dataset.mean), "std": list(dataset.std)}  # fmt: skip
    save_weights(out_dir / "model.safetensors", model_state(trainer.model), about)
    title = f"{cfg.MODEL.TYPE}, {cfg.HEAD.NAME or cfg.HEAD.SIMILARITY.NAME}, {cfg.TRAIN.DATASET}"
    if trainer.history:
        plots.draw_curves(out_dir / "curves.png", trainer.history, title)
    drawn = ["curves.png"] if trainer.history else []
    if trainer.model.backbone.feature_dim == 2:
        everything = build.build_eval_loader(cfg, test_set, device, Ranks())
        features, labels = plots.collect_features(trainer.model, everything)
        in_place = trainer.model.head.similarity.domain == "distance"
        prototypes = trainer.model.head.weight.detach().cpu() if in_place else None
        plots.draw_features(out_dir / "features.png", features, labels, prototypes, list(dataset.class_names), title)
        drawn.append("features.png")
    log_json_stats({k: v for k, v in tested.items() if not isinstance(v, list)}, "test_epoch")
    reports.write(out_dir / RESULT, result)
    logger.info("\n%s\n", reports.table(result))
    logger.info("in %s: model.safetensors, %s, %s", out_dir, RESULT, ", ".join(drawn))


def test(cfg: CfgNode) -> int:
    """Evaluates TEST.WEIGHTS, or the best weights in OUT_DIR, on the test data. Returns the exit code."""
    path = cfg.TEST.WEIGHTS or _best_in(cfg)
    if not is_worker() and _processes(cfg) > 1:
        return launch_local(_processes(cfg))
    with _process_group(cfg) as (device, ranks):
        weights, about = load_weights(path)
        dataset, split = _test_set(cfg)
        classes = build.num_classes(cfg, dataset)
        model = build.build_model(cfg, dataset.channels, build.image_size(cfg, dataset), classes)
        load_model_state(model, weights, str(path))
        model = _place(cfg, model, device)
        setup_logging(None, ranks.rank)
        loader = build.build_eval_loader(cfg, dataset, device, ranks)
        tested = evaluate(model, loader, Evaluation(classes, cfg.TEST.TOP_K, device))
        if ranks.is_main:
            result = {"test": tested, "test_set": dataset.name, "test_split": split, "weights": str(path),
                      "epoch": about.get("epoch"), "class_names": list(dataset.class_names)}  # fmt: skip
            reports.write(make_out_dir(cfg.OUT_DIR) / "test.json", result)
            log_json_stats({k: v for k, v in tested.items() if not isinstance(v, list)}, "test_epoch")
            logger.info("\n%s\n", reports.table(result))
    return 0


def time(cfg: CfgNode) -> int:
    """Measures the training step, the test step, the loader, and loader and step together. Returns the exit code."""
    setup_logging(None)
    with _process_group(cfg) as (device, ranks):
        dataset = build.build_dataset(cfg, cfg.TRAIN.SPLIT)
        classes = build.num_classes(cfg, dataset)
        model = build.build_model(cfg, dataset.channels, build.image_size(cfg, dataset), classes, dataset.labels)
        model = _place(cfg, model, device)
        times = time_steps(
            model, build.build_optimizer(cfg, model), build.build_train_loader(cfg, dataset, device, ranks), device,
            warmup=cfg.PREC_TIME.WARMUP_ITER, count=cfg.PREC_TIME.NUM_ITER, autocast=build.autocast_dtype(cfg),
        )  # fmt: skip
        log_json_stats(times, "time")
        logger.info("%s", reports.timing(times, cfg.TRAIN.BATCH_SIZE))
    return 0


def info(cfg: CfgNode) -> int:
    """Prints the options, the model, and its parameters, multiply-adds and activations. Returns the exit code."""
    try:
        dataset = build.build_dataset(cfg, cfg.TRAIN.SPLIT)
        classes, channels, size = build.num_classes(cfg, dataset), dataset.channels, build.image_size(cfg, dataset)
    except InputError:
        if not (cfg.MODEL.NUM_CLASSES and cfg.TRAIN.IM_SIZE):
            raise  # without the data only the options can say
        classes, channels, size = cfg.MODEL.NUM_CLASSES, 3, cfg.TRAIN.IM_SIZE
    model = build.build_model(cfg, channels, size, classes)
    counts = complexity(model, channels, size)
    print(config.dump(cfg))
    print(model)
    print(f"\nimages {channels} x {size} x {size}, features {model.backbone.feature_dim}, classes {classes}")
    print(f"params {counts.params:,}   flops {counts.flops:,} (multiply-adds)   activations {counts.acts:,}")
    return 0


# --- the pieces


@contextlib.contextmanager
def _claim(out_dir: Path) -> Any:
    """Exclusive use of OUT_DIR for the one process that speaks for the run."""
    launched = LAUNCHER_PID in os.environ
    if launched or (is_worker() and ranks_from_env().rank > 0):
        yield
    else:
        with RunLock(out_dir):
            yield


def _refuse_other_config(out_dir: Path, cfg: CfgNode) -> None:
    """Raises InputError if OUT_DIR has checkpoints that this config would not continue."""
    if not _checkpoints(cfg, out_dir).steps() or not (out_dir / CONFIG).is_file():
        return
    if not cfg.TRAIN.AUTO_RESUME:
        raise InputError(f"{out_dir} holds a run, and TRAIN.AUTO_RESUME is off: give another OUT_DIR, or remove it")
    changes = config.difference(config.load(str(out_dir / CONFIG)), cfg)
    if changes:
        raise InputError(f"{out_dir} holds a run of another configuration; give another OUT_DIR. "
                         f"Its difference: {'; '.join(changes)}")  # fmt: skip


def _processes(cfg: CfgNode) -> int:
    return int(cfg.NUM_GPUS if choose_device(cfg.DEVICE, 0).type == "cuda" else cfg.NUM_PROCS)


@contextlib.contextmanager
def _process_group(cfg: CfgNode) -> Any:
    ranks = ranks_from_env()
    device = choose_device(cfg.DEVICE, ranks.local_rank)
    set_threads(cfg.NUM_THREADS, ranks.local_world_size)
    set_deterministic(device, cfg.DETERMINISTIC, cfg.CUDNN.BENCHMARK)
    ranks = init_process_group_from_env(device)
    try:
        yield device, ranks
    finally:
        destroy()


def _checkpoints(cfg: CfgNode, out_dir: Path) -> Checkpoints:
    return Checkpoints(out_dir / "checkpoints", cfg.TRAIN.CHECKPOINT_KEEP)


def _place(cfg: CfgNode, model: Any, device: torch.device) -> Any:
    model = model.to(device)
    if cfg.MODEL.CHANNELS_LAST:
        model = model.to(memory_format=torch.channels_last)
    if cfg.MODEL.COMPILE:
        model.backbone.compile()
    return model


def _parallel(model: nn.Module, device: torch.device, ranks: Ranks) -> nn.Module:
    if ranks.world_size == 1:
        return model
    return nn.parallel.DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)


def _ema(cfg: CfgNode, model: nn.Module) -> Ema | None:
    period = cfg.OPTIM.EMA_UPDATE_PERIOD
    if not period:
        return None
    return Ema(model, Ema.share(cfg.OPTIM.EMA_ALPHA, cfg.TRAIN.BATCH_SIZE, cfg.OPTIM.MAX_EPOCH, period), period)


def _mixer(cfg: CfgNode, ranks: Ranks) -> Callable[..., Any] | None:
    mixup, cutmix = cfg.TRAIN.MIXUP_ALPHA, cfg.TRAIN.CUTMIX_ALPHA
    if not (mixup or cutmix):
        return None
    return lambda images, labels, step: mix(images, labels, cfg.RNG_SEED, step, mixup, cutmix, ranks.rank)


def _judge(cfg: CfgNode, classes: int, top_k: int, device: torch.device, ranks: Ranks) -> Callable[..., Any] | None:
    if cfg.TRAIN.EVAL_SPLIT == "none":
        return None
    loader = build.build_eval_loader(cfg, build.build_dataset(cfg, cfg.TRAIN.EVAL_SPLIT), device, ranks)
    return lambda model: evaluate(model, loader, Evaluation(classes, top_k, device))


def _precise(cfg: CfgNode, model: nn.Module, loader: Any, epoch: int, ranks: Ranks) -> None:
    if cfg.BN.USE_PRECISE_STATS:
        precise_batch_norm(model, loader.epoch(epoch), cfg.BN.NUM_SAMPLES_PRECISE, ranks.world_size)


def _settings(cfg: CfgNode, top_k: int) -> Settings:
    return Settings(
        max_epoch=cfg.OPTIM.MAX_EPOCH, seed=cfg.RNG_SEED, batch_size=cfg.TRAIN.BATCH_SIZE,
        accum_steps=cfg.TRAIN.ACCUM_STEPS, clip_norm=cfg.OPTIM.CLIP_NORM, autocast=build.autocast_dtype(cfg),
        eval_period=cfg.TRAIN.EVAL_PERIOD, checkpoint_period=cfg.TRAIN.CHECKPOINT_PERIOD,
        checkpoint_steps=cfg.TRAIN.CHECKPOINT_STEPS, log_period=cfg.LOG_PERIOD, top_k=top_k,
    )  # fmt: skip


def _step(state: dict[str, Any], steps: int) -> int:
    return int(state["epoch"] * steps + state["start"])


def _sample_log(out_dir: Path, rank: int) -> Callable[[int, torch.Tensor], None]:
    path = out_dir / f"samples_rank{rank}.txt"

    def write(step: int, ids: torch.Tensor) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{step}: {' '.join(map(str, ids.tolist()))}\n")

    return write


def _test_set(cfg: CfgNode) -> tuple[build.Dataset, str]:
    """The data set to test on and its split: ``auto`` is test where there is one, else val."""
    from pycls.data.dataset import MissingSplit

    name = cfg.TEST.DATASET or cfg.TRAIN.DATASET
    if cfg.TEST.SPLIT != "auto":
        return build.build_dataset(cfg, cfg.TEST.SPLIT, name), cfg.TEST.SPLIT
    try:
        return build.build_dataset(cfg, "test", name), "test"
    except MissingSplit:
        return build.build_dataset(cfg, "val", name), "val"


def _best_in(cfg: CfgNode) -> Path:
    checkpoints = _checkpoints(cfg, Path(cfg.OUT_DIR))
    best = checkpoints.best()
    steps = checkpoints.steps()
    if best is None and not steps:
        raise InputError(f"no checkpoint in {checkpoints.folder}; give TEST.WEIGHTS, or the OUT_DIR of a run")
    return best or checkpoints.path(steps[-1])


def _warn(cfg: CfgNode, device: torch.device) -> None:
    if build.autocast_dtype(cfg) is not None and device.type == "cpu" and not has_fast_bf16(device):
        logger.warning("this CPU has no bf16 units: TRAIN.MIXED_PRECISION makes training about ten times slower here")
    if cfg.TRAIN.EVAL_SPLIT == "test":
        logger.info("evaluating on the test split in training: shown, but the best epoch is not chosen on it")
