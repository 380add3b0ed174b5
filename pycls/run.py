"""What the command line does: train, test, time and describe, each a straight story."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

import pycls
from pycls import build, config, launching, zoo
from pycls.engine import open_set, plots, reports
from pycls.engine.checkpoints import load_model_state, model_state
from pycls.engine.evaluate import Evaluation, evaluate, precise_batch_norm
from pycls.engine.reporter import Reporter
from pycls.engine.state_file import better_weights, load_state, save_weights
from pycls.engine.timing import time_steps
from pycls.engine.trainer import Stopped, Trainer
from pycls.errors import DamagedFile, RunError
from pycls.models.complexity import complexity
from pycls.runtime.board import Board
from pycls.runtime.devices import has_fast_bf16
from pycls.runtime.distributed import Ranks, barrier, ranks_from_env
from pycls.runtime.files import atomic_write, make_out_dir
from pycls.runtime.launch import launch_local
from pycls.runtime.log import log_json_stats, setup_logging
from pycls.scaling import scale as scale

logger = logging.getLogger(__name__)

RESULT = "result.json"


def train(cfg: CfgNode) -> int:
    """Trains, or continues, the run in OUT_DIR; then tests its best weights. Returns the exit code."""
    out_dir = make_out_dir(cfg.OUT_DIR)
    with launching.claim(out_dir):
        if not launching.is_launched():
            launching.refuse_other_config(cfg)
            if is_finished(cfg, out_dir):
                return 0
            if launching.processes_to_launch(cfg):
                return launch_local(launching.processes_to_launch(cfg))
        try:
            with launching.process_group(cfg) as (device, ranks):
                _train(cfg, out_dir, device, ranks)
        except Stopped as stopped:
            return stopped.exit_code
    return 0


def is_finished(cfg: CfgNode, out_dir: Path) -> bool:
    """Whether the run has ended; its main process shows how."""
    if not (out_dir / RESULT).is_file() or not launching.checkpoints(cfg).steps():
        return False
    if ranks_from_env().is_main:
        print(f"the run in {out_dir} is finished:\n\n{reports.table(reports.read(out_dir / RESULT))}\n")
    return True


def _train(cfg: CfgNode, out_dir: Path, device: torch.device, ranks: Ranks) -> None:
    """Everything is built, and so checked, before the first byte is written to OUT_DIR."""
    setup_logging(None, ranks.rank)
    dataset, drawn = build.build_training_set(cfg)
    cfg = config.with_value(cfg, "DATA.HASH", drawn.sha256 if drawn is not None else "")
    tested_on, test_split = build.build_test_set(cfg)
    test_set = build.with_classes(tested_on, dataset.class_names), test_split
    classes = build.num_classes(cfg, dataset)
    build.check_num_classes(test_set[0].labels, classes, test_set[0].name)
    if cfg.TEST.OPEN_SET:
        build.build_unknown_loader(cfg, test_set[0], device)  # what is missing is to be known now
    trainer = _trainer(cfg, out_dir, dataset, classes, device, ranks)
    setup_logging(out_dir, ranks.rank)
    state = trainer.checkpoints.newest(ranks.is_main)
    if state is not None:
        launching.refuse_other_data(cfg, state["config"])
        trainer.load_state_dict(state, str(trainer.checkpoints.folder))
        trainer.reporter.board.purge_step = trainer.step
        logger.info("continuing from epoch %d, step %d of %d", trainer.epoch + 1, trainer.start, len(trainer.loader))
    if ranks.is_main and drawn is not None:
        atomic_write(out_dir / "training_set.npz", drawn.write)
        logger.info(drawn.describe())
    if ranks.is_main:
        atomic_write(out_dir / launching.CONFIG_FILE, lambda file: file.write(config.dump(cfg).encode()))
    _announce(cfg, trainer, dataset, classes, device)
    trainer.fit()
    barrier()
    _finish(cfg, out_dir, trainer, dataset, test_set, device, ranks)
    trainer.reporter.board.close()


def _trainer(
    cfg: CfgNode, out_dir: Path, dataset: build.Dataset, classes: int, device: torch.device, ranks: Ranks
) -> Trainer:
    torch.manual_seed(cfg.RNG_SEED)
    model = build.build_model(cfg, dataset.channels, build.image_size(cfg, dataset), classes, dataset.labels)
    if cfg.TRAIN.WEIGHTS:
        zoo.load_into(model, zoo.load(cfg.TRAIN.WEIGHTS), new_head=True)
    model = build.place(cfg, model, device)
    loader = build.build_train_loader(cfg, dataset, device, ranks)

    def before_evaluation(epoch: int) -> None:
        if cfg.BN.USE_PRECISE_STATS:
            precise_batch_norm(model, loader.epoch(epoch), cfg.BN.NUM_SAMPLES_PRECISE, ranks.world_size)

    return Trainer(
        model=model,
        network=build.build_network(model, device, ranks),
        optimizer=build.build_optimizer(cfg, model),
        schedule=build.build_schedule(cfg),
        loader=loader,
        ema=build.build_ema(cfg, model),
        mix=build.build_mix(cfg, ranks),
        evaluate=build.build_judge(cfg, classes, device, ranks),
        before_evaluation=before_evaluation,
        choose_best=cfg.TRAIN.EVAL_SPLIT == "val",
        checkpoints=launching.checkpoints(cfg),
        settings=build.build_settings(cfg, classes, ranks),
        device=device,
        ranks=ranks,
        reporter=Reporter(Board(out_dir / "tensorboard", cfg.TENSORBOARD and ranks.is_main), ranks.is_main,
                          cfg.OPTIM.MAX_EPOCH, len(loader), cfg.TRAIN.BATCH_SIZE, cfg.TRAIN.EVAL_SPLIT),
        extra={"config": config.dump(cfg), "versions": {"pycls": pycls.__version__, "torch": torch.__version__},
               "class_names": list(dataset.class_names)},
        sample_log=_sample_log(out_dir, ranks.rank) if cfg.LOG_SAMPLES else None,
        inspect=build.build_inspector(model) if ranks.is_main else None,
    )  # fmt: skip


def _announce(cfg: CfgNode, trainer: Trainer, dataset: build.Dataset, classes: int, device: torch.device) -> None:
    logger.info("%s on %s: %d training images, %d classes, %s parameters, %s", _names(cfg), dataset.name, len(dataset),
                classes, f"{sum(p.numel() for p in trainer.model.parameters()):,}", device)  # fmt: skip
    if trainer.settings.autocast is not None and device.type == "cpu" and not has_fast_bf16(device):
        logger.warning("this CPU has no bf16 units: TRAIN.MIXED_PRECISION makes training about ten times slower here")
    for warning in build.head_warnings(trainer.model):
        logger.warning(warning)
    if cfg.TRAIN.EVAL_SPLIT == "test":
        logger.info("evaluating on the test part in training: shown, but the best epoch is not chosen on it")


def _names(cfg: CfgNode) -> str:
    return f"{cfg.MODEL.TYPE}{cfg.MODEL.DEPTH or ''} with {cfg.HEAD.NAME or cfg.HEAD.SIMILARITY.NAME} head"


def _finish(
    cfg: CfgNode, out_dir: Path, trainer: Trainer, dataset: build.Dataset, test_set: tuple[build.Dataset, str],
    device: torch.device, ranks: Ranks,
) -> None:  # fmt: skip
    """Tests the best weights (the last where none could be chosen), and writes what a person wants to see."""
    state, chosen = _chosen_state(trainer)
    which = better_weights(state)
    load_model_state(trainer.model, state[which], str(trainer.checkpoints.folder))
    tested_on, split = test_set
    loader = build.build_eval_loader(cfg, tested_on, split, device, ranks)
    classes = trainer.model.head.similarity.num_classes
    tested = evaluate(trainer.model, loader, Evaluation(classes, cfg.TEST.TOP_K, device))
    if not ranks.is_main:
        return
    tested["open_set"] = _open_set(cfg, trainer.model, test_set, device)
    about = {"config": config.dump(cfg), "class_names": list(dataset.class_names), "top1_err": tested["top1_err"],
             "mean": list(dataset.mean), "std": list(dataset.std)}  # fmt: skip
    save_weights(out_dir / "model.safetensors", model_state(trainer.model), about)
    drawn = _draw(cfg, out_dir, trainer, test_set, device)
    unreadable = build.count_unreadable(cfg)
    for part, count in unreadable.items():
        logger.warning("%d images of %s could not be read; %s names them", count, part, build.unreadable_record(cfg))
    log_json_stats({k: v for k, v in tested.items() if not isinstance(v, list | dict)}, "test_epoch")
    result = {
        "epoch": state["epoch"], "weights": which, "chosen_on": cfg.TRAIN.EVAL_SPLIT if chosen else None,
        "history": trainer.history, "test": tested, "test_set": tested_on.name, "test_split": split,
        "class_names": list(dataset.class_names), "unreadable": unreadable,
    }  # fmt: skip
    reports.write(out_dir / RESULT, result)
    logger.info("\n%s\n", reports.table(result))
    logger.info("in %s: %s", out_dir, ", ".join(["model.safetensors", RESULT, *drawn]))


def _open_set(
    cfg: CfgNode, model: Any, known: tuple[build.Dataset, str], device: torch.device
) -> dict[str, Any] | None:
    """How well the known classes' test images are told from those of TEST.OPEN_SET; None if none is asked for."""
    if not cfg.TEST.OPEN_SET:
        return None
    inside = open_set.score_all(model, build.build_eval_loader(cfg, *known, device, Ranks()))
    outside = open_set.score_all(model, build.build_unknown_loader(cfg, known[0], device))
    return {"data_set": cfg.TEST.OPEN_SET, "scores": open_set.judge(inside, outside)}


def _chosen_state(trainer: Trainer) -> tuple[dict[str, Any], bool]:
    """The best checkpoint, and that it was chosen as such; else the last state."""
    best = trainer.checkpoints.best()
    if best is not None:
        try:
            return load_state(best), True
        except DamagedFile as error:
            logger.error("%s; going on with the last weights, which are not the best ones", error)
    return trainer.state_dict(), False


def _draw(
    cfg: CfgNode, out_dir: Path, trainer: Trainer, test_set: tuple[build.Dataset, str], device: torch.device
) -> list[str]:
    """Draws the curves, and the features where they have two dimensions. Returns the names of the files."""
    drawn = []
    if trainer.history:
        title = f"{_names(cfg)} on {cfg.TRAIN.DATASET}"
        plots.draw_curves(out_dir / "curves.png", trainer.history, title, cfg.TRAIN.EVAL_SPLIT)
        drawn.append("curves.png")
    if trainer.model.backbone.feature_dim == 2:
        everything = build.build_eval_loader(cfg, *test_set, device, Ranks())
        features, labels = plots.collect_features(trainer.model, everything)
        similarity = trainer.model.head.similarity
        prototypes = similarity.weight.detach().cpu() if similarity.domain == "distance" else None
        title = f"{_names(cfg)}, features of {test_set[0].name}"
        plots.draw_features(out_dir / "features.png", features, labels, prototypes, list(test_set[0].class_names), title)
        drawn.append("features.png")
    return drawn


def test(cfg: CfgNode) -> int:
    """Evaluates TEST.WEIGHTS, or the best weights in OUT_DIR, on the test data. Returns the exit code."""
    path = cfg.TEST.WEIGHTS or launching.best_in(cfg)
    if launching.processes_to_launch(cfg):
        return launch_local(launching.processes_to_launch(cfg))
    with launching.process_group(cfg) as (device, ranks):
        setup_logging(None, ranks.rank)
        weights = zoo.load(path)
        dataset, split = build.build_test_set(cfg)
        dataset = build.with_classes(dataset, weights.about.get("class_names") or dataset.class_names)
        classes = build.num_classes(cfg, dataset)
        model = build.build_model(cfg, dataset.channels, build.image_size(cfg, dataset), classes)
        zoo.load_into(model, weights)
        model = build.place(cfg, model, device)
        loader = build.build_eval_loader(cfg, dataset, split, device, ranks)
        tested = evaluate(model, loader, Evaluation(classes, cfg.TEST.TOP_K, device))
        if ranks.is_main:
            tested["open_set"] = _open_set(cfg, model, (dataset, split), device)
            result = {"test": tested, "test_set": dataset.name, "test_split": split, "weights": weights.source,
                      "epoch": weights.about.get("epoch"), "class_names": list(dataset.class_names)}  # fmt: skip
            _report(cfg, "test.json", result, reports.table(result))
    return 0


def time(cfg: CfgNode) -> int:
    """Measures the training step, the test step, the loader, and loader and step together. Returns the exit code."""
    with launching.process_group(cfg) as (device, ranks):
        setup_logging(None, ranks.rank)
        dataset, _ = build.build_training_set(cfg)
        classes = build.num_classes(cfg, dataset)
        model = build.build_model(cfg, dataset.channels, build.image_size(cfg, dataset), classes, dataset.labels)
        model = build.place(cfg, model, device)
        logger.info("%s on %s: %d steps of %d images on %s", _names(cfg), dataset.name, cfg.PREC_TIME.NUM_ITER,
                    cfg.TRAIN.BATCH_SIZE, device)  # fmt: skip
        times = time_steps(
            model, build.build_optimizer(cfg, model), build.build_train_loader(cfg, dataset, device, ranks), device,
            warmup=cfg.PREC_TIME.WARMUP_ITER, count=cfg.PREC_TIME.NUM_ITER, autocast=build.autocast_dtype(cfg),
        )  # fmt: skip
        if ranks.is_main:
            _report(cfg, "time.json", times, reports.timing(times, cfg.TRAIN.BATCH_SIZE))
    return 0


def _report(cfg: CfgNode, name: str, result: dict[str, Any], text: str) -> None:
    """JSON for programs in OUT_DIR, text for people."""
    logger.info("\n%s\n", text)
    path = make_out_dir(cfg.OUT_DIR) / name
    reports.write(path, result)
    logger.info("in %s", path)


def info(cfg: CfgNode) -> int:
    """Prints the options, the model, and its parameters, multiply-adds and activations. Returns the exit code."""
    channels, size, classes = build.input_of(cfg)
    model = build.build_model(cfg, channels, size, classes, storage=False)
    print(config.dump(cfg))
    print(model)
    print(f"\nimages {channels} x {size} x {size}, features {model.backbone.feature_dim}, classes {classes}")
    print(complexity(model, channels, size))
    return 0


def _sample_log(out_dir: Path, rank: int) -> Callable[[int, torch.Tensor], None]:
    path = out_dir / f"samples_rank{rank}.txt"

    def write(step: int, ids: torch.Tensor) -> None:
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(f"{step}: {' '.join(map(str, ids.tolist()))}\n")
        except OSError as error:
            raise RunError(f"cannot write {path}: {error.strerror}") from error

    return write
