"""What the command line does: train, test, time and describe, each a straight story."""

import logging
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from pycls import build, config, launching, testing, training, zoo
from pycls.engine import plots, reports
from pycls.engine.checkpoints import model_state
from pycls.engine.sharded import is_sharded
from pycls.engine.state_file import save_weights
from pycls.engine.timing import time_steps
from pycls.engine.trainer import Stopped, Trainer
from pycls.errors import InputError
from pycls.models.complexity import complexity
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
    build.refuse_own_test_set(cfg, dataset, tested_on, test_split)
    other = cfg.TRAIN.DATASET if cfg.TEST.DATASET not in ("", cfg.TRAIN.DATASET) else ""
    test_set = build.match_classes(cfg, tested_on, dataset.class_names, dataset.name, other), test_split
    classes = build.num_classes(cfg, dataset)
    build.check_num_classes(test_set[0].labels, classes, test_set[0].name)
    build.build_views(cfg, test_set[0])  # what is wrong or missing is to be known now
    if cfg.TEST.OPEN_SET:
        build.build_unknown_loader(cfg, test_set[0], device)
    model = training.first_model(cfg, dataset, classes, device, ranks)
    training.check_second_stage(cfg, model, dataset, classes, ranks)
    trainer = training.make_trainer(cfg, model, dataset, classes, device, ranks, config.dump(cfg))
    setup_logging(out_dir, ranks.rank)
    training.resume(cfg, trainer)
    if ranks.is_main and drawn is not None:
        atomic_write(out_dir / "training_set.npz", drawn.write)
        logger.info(drawn.describe())
    if ranks.is_main:
        atomic_write(out_dir / launching.CONFIG_FILE, lambda file: file.write(config.dump(cfg).encode()))
    training.announce(cfg, trainer, dataset, classes, device)
    trainer.fit()
    barrier()
    first = None
    if cfg.STAGE2.METHOD != "none":
        first = _first_stage(cfg, trainer, test_set)
        weights = {name: value.cpu().clone() for name, value in model_state(trainer.model).items()}
        trainer.reporter.board.close()
        del trainer, model  # room for the next one's
        trainer = _second_stage(cfg, weights, dataset, classes, device, ranks)
    _finish(cfg, out_dir, trainer, dataset, test_set, first)
    trainer.reporter.board.close()


def _first_stage(cfg: CfgNode, trainer: Trainer, test_set: tuple[build.Dataset, str]) -> dict[str, Any]:
    """What there is to tell of it; its model has the chosen weights now."""
    result, _ = _tested(cfg, trainer, test_set)
    logger.info("the first stage is over: %s test error %.2f %%", test_set[0].name, result["test"]["top1_err"])
    return result


def _second_stage(
    cfg: CfgNode, weights: dict[str, torch.Tensor], dataset: build.Dataset, classes: int, device: torch.device, ranks: Ranks
) -> Trainer:
    """Trains, or continues, the second stage, whose files are in a folder of its own."""
    later = config.last_stage(cfg)
    make_out_dir(later.OUT_DIR)
    model = training.second_model(cfg, weights, dataset, classes, device, ranks)
    trainer = training.make_trainer(later, model, dataset, classes, device, ranks, config.dump(cfg))
    training.resume(later, trainer)
    logger.info("second stage (%s): %s on the frozen backbone, %s sampling, %d epochs", cfg.STAGE2.METHOD,
                training.names(later), later.TRAIN.SAMPLER, later.OPTIM.MAX_EPOCH)  # fmt: skip
    trainer.fit()
    barrier()
    return trainer


def _tested(
    cfg: CfgNode, trainer: Trainer, test_set: tuple[build.Dataset, str]
) -> tuple[dict[str, Any], testing.Assessment]:
    """Tests the best weights, or the last where none could be chosen; the model has them afterwards."""
    epoch, which, chosen = training.choose_weights(trainer)
    counts = trainer.extra["class_counts"]
    found = testing.assess(cfg, trainer.model, len(counts), test_set, counts, trainer.device, trainer.ranks)
    return {"epoch": epoch, "weights": which, "chosen_on": cfg.TRAIN.EVAL_SPLIT if chosen else None,
            "history": trainer.history, "test": found.numbers}, found  # fmt: skip


def _finish(
    cfg: CfgNode, out_dir: Path, trainer: Trainer, dataset: build.Dataset, test_set: tuple[build.Dataset, str],
    first: dict[str, Any] | None,
) -> None:  # fmt: skip
    """Tests the chosen weights, and writes what a person wants to see; ``first`` is the first of two stages' result."""
    result, found = _tested(cfg, trainer, test_set)
    weights = model_state(trainer.model, "rank 0")
    if not trainer.ranks.is_main:
        return
    tested, device, counts = found.numbers, trainer.device, trainer.extra["class_counts"]
    about = {"config": config.dump(cfg), "class_names": list(dataset.class_names), "class_counts": counts,
             "top1_err": tested["top1_err"], "mean": list(dataset.mean), "std": list(dataset.std)}  # fmt: skip
    save_weights(out_dir / "model.safetensors", weights, about)
    drawn = _draw(cfg, out_dir, trainer, weights, test_set, device)
    drawn += testing.write_tables(out_dir, "result", found, test_set[0], dataset.class_names, counts)
    unreadable = build.count_unreadable(cfg)
    for part, count in unreadable.items():
        logger.warning("%d images of %s could not be read; %s names them", count, part, build.unreadable_record(cfg))
    log_json_stats({k: v for k, v in tested.items() if not isinstance(v, list | dict)}, "test_epoch")
    result |= {
        "test_set": test_set[0].name, "test_split": test_set[1], "class_names": list(dataset.class_names),
        "unreadable": unreadable, **({} if first is None else {"stage1": first}),
    }  # fmt: skip
    reports.write(out_dir / RESULT, result)
    logger.info("\n%s\n", reports.table(result))
    logger.info("in %s: %s", out_dir, ", ".join(["model.safetensors", RESULT, *drawn]))


def _draw(
    cfg: CfgNode, out_dir: Path, trainer: Trainer, weights: dict[str, torch.Tensor], test_set: tuple[build.Dataset, str],
    device: torch.device,
) -> list[str]:
    """Draws the curves, and the features where they have two dimensions. Returns the names of the files."""
    drawn = []
    if trainer.history:
        title = f"{training.names(cfg)} on {cfg.TRAIN.DATASET}"
        plots.draw_curves(out_dir / "curves.png", trainer.history, title, cfg.TRAIN.EVAL_SPLIT)
        drawn.append("curves.png")
    if trainer.model.backbone.feature_dim == 2 and not is_sharded(trainer.model.backbone):
        everything = build.build_eval_loader(cfg, *test_set, device, Ranks())
        features, labels = plots.collect_features(trainer.model, everything)
        similarity = trainer.model.head.similarity
        prototypes = weights["head.similarity.weight"].cpu() if similarity.domain == "distance" else None
        title = f"{training.names(cfg)}, features of {test_set[0].name}"
        plots.draw_features(out_dir / "features.png", features, labels, prototypes, list(test_set[0].class_names), title)
        drawn.append("features.png")
    return drawn


def test(cfg: CfgNode) -> int:
    """Evaluates TEST.WEIGHTS, or the best weights in OUT_DIR, on the test data. Returns the exit code."""
    last = config.last_stage(cfg)
    path = cfg.TEST.WEIGHTS or launching.best_in(last)
    if launching.processes_to_launch(cfg):
        return launch_local(launching.processes_to_launch(cfg))
    with launching.process_group(cfg) as (device, ranks):
        setup_logging(None, ranks.rank)
        weights = zoo.load(path)
        dataset, split = build.build_test_set(cfg)
        build.refuse_trained_on(cfg, dataset, split, weights.about, weights.source)
        dataset = build.match_classes(cfg, dataset, weights.class_names, weights.source, weights.data)
        classes = build.num_classes(cfg, dataset)
        model = build.build_model(last, dataset.channels, build.image_size(cfg, dataset), classes)
        zoo.load_into(model, weights)
        build.share_out(cfg, model, ranks)
        model = build.place(cfg, model, device)
        counts = weights.about.get("class_counts")
        if counts is not None and len(counts) != classes:
            raise InputError(f"{weights.source}: its entry class_counts has {len(counts)} numbers; it should have one for each "
                             f"of the model's {classes} classes")  # fmt: skip
        found = testing.assess(cfg, model, classes, (dataset, split), counts, device, ranks)
        if ranks.is_main:
            testing.write_tables(make_out_dir(cfg.OUT_DIR), "test", found, dataset, dataset.class_names, counts)
            result = {"test": found.numbers, "test_set": dataset.name, "test_split": split, "weights": weights.source,
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
        logger.info("%s on %s: %d steps of %d images on %s", training.names(cfg), dataset.name, cfg.PREC_TIME.NUM_ITER,
                    cfg.TRAIN.BATCH_SIZE, device)  # fmt: skip
        loader = build.build_train_loader(cfg, dataset, device, ranks)
        times = time_steps(
            model, build.build_optimizer(cfg, model), loader, device,
            warmup=cfg.PREC_TIME.WARMUP_ITER, count=cfg.PREC_TIME.NUM_ITER, autocast=build.autocast_dtype(cfg),
        )  # fmt: skip
        if ranks.is_main:
            _report(cfg, "time.json", times, reports.timing(times, cfg.TRAIN.BATCH_SIZE, loader.decodes_on_device))
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
