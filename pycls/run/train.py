"""``--mode train``: trains, or continues, a run of one stage or two; then tests its best weights."""

import logging
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from pycls import build, config
from pycls.engine.checkpoint.checkpoints import model_state
from pycls.engine.checkpoint.sharded import is_sharded
from pycls.engine.checkpoint.state_file import save_weights
from pycls.engine.trainer import Stopped, Trainer
from pycls.heads.head import Head
from pycls.report import plots, summary
from pycls.run import evaluation, setup, trainers
from pycls.run.context import RunContext
from pycls.runtime.distributed import Ranks, barrier, ranks_from_env
from pycls.runtime.files import atomic_write, make_out_dir
from pycls.runtime.launch import launch_local
from pycls.runtime.log import log_json_stats, setup_logging

logger = logging.getLogger(__name__)

RESULT = "result.json"


def train(cfg: CfgNode) -> int:
    """Trains, or continues, the run in OUT_DIR; then tests its best weights. Returns the exit code."""
    out_dir = make_out_dir(cfg.OUT_DIR)
    with setup.claim(out_dir):
        if not setup.is_launched():
            setup.refuse_other_config(cfg)
            if is_finished(cfg, out_dir):
                return 0
            if setup.processes_to_launch(cfg):
                return launch_local(setup.processes_to_launch(cfg))
        try:
            with setup.process_group(cfg) as (device, ranks):
                _train(cfg, out_dir, device, ranks)
        except Stopped as stopped:
            return stopped.exit_code
    return 0


def is_finished(cfg: CfgNode, out_dir: Path) -> bool:
    """Whether the run has ended; its main process shows how."""
    if not (out_dir / RESULT).is_file() or not setup.checkpoints(cfg).steps():
        return False
    if ranks_from_env().is_main:
        print(f"the run in {out_dir} is finished:\n\n{summary.table(summary.read(out_dir / RESULT))}\n")
    return True


def _train(cfg: CfgNode, out_dir: Path, device: torch.device, ranks: Ranks) -> None:
    """Everything is built, and so checked, before the first byte is written to OUT_DIR."""
    setup_logging(None, ranks.rank)
    dataset, subset = build.build_training_set(cfg)
    cfg = config.with_value(cfg, "DATA.HASH", subset.sha256 if subset is not None else "")
    tested_on, test_split = build.build_test_set(cfg)
    build.refuse_own_test_set(cfg, dataset, tested_on, test_split)
    other = cfg.TRAIN.DATASET if cfg.TEST.DATASET not in ("", cfg.TRAIN.DATASET) else ""
    test_set = build.match_classes(cfg, tested_on, dataset.class_names, dataset.name, other), test_split
    classes = build.num_classes(cfg, dataset)
    build.check_num_classes(test_set[0].labels, classes, test_set[0].name)
    build.build_test_time_augmentation(cfg, test_set[0])  # what is wrong or missing is to be known now
    if cfg.TEST.OPEN_SET:
        build.build_unknown_loader(cfg, test_set[0], device)
    run = RunContext(cfg, dataset, classes, device, ranks)
    model = trainers.first_model(run)
    trainers.check_second_stage(run, model)
    trainer = trainers.make_trainer(run, model, config.dump(cfg))
    setup_logging(out_dir, ranks.rank)
    trainers.resume(cfg, trainer)
    if ranks.is_main and subset is not None:
        atomic_write(out_dir / "training_set.npz", subset.write)
        logger.info(subset.describe())
    if ranks.is_main:
        atomic_write(out_dir / setup.CONFIG_FILE, lambda file: file.write(config.dump(cfg).encode()))
    trainers.announce(run, trainer)
    trainer.fit()
    barrier()
    first = None
    if cfg.STAGE2.METHOD != "none":
        first = _first_stage(cfg, trainer, test_set)
        weights = {name: value.cpu().clone() for name, value in model_state(trainer.model).items()}
        trainer.reporter.tensorboard.close()
        del trainer, model  # frees memory for the next one's
        trainer = _second_stage(run, weights)
    _finish(run, out_dir, trainer, test_set, first)
    trainer.reporter.tensorboard.close()


def _first_stage(cfg: CfgNode, trainer: Trainer, test_set: tuple[build.Dataset, str]) -> dict[str, Any]:
    """What there is to tell of it; its model has the chosen weights now."""
    result, _ = _tested(cfg, trainer, test_set)
    logger.info("the first stage is over: %s test top-1 error %.2f %%", test_set[0].name, result["test"]["top1_err"])
    return result


def _second_stage(run: RunContext, weights: dict[str, torch.Tensor]) -> Trainer:
    """Trains, or continues, the second stage, whose files are in their own folder."""
    later = run.last_stage()
    make_out_dir(later.cfg.OUT_DIR)
    trainer = trainers.make_trainer(later, trainers.second_model(run, weights), config.dump(run.cfg))
    trainers.resume(later.cfg, trainer)
    logger.info("second stage (%s): %s on the frozen backbone, %s sampling, %d epochs", run.cfg.STAGE2.METHOD,
                later.title, later.cfg.TRAIN.SAMPLER, later.cfg.OPTIM.MAX_EPOCH)  # fmt: skip
    trainer.fit()
    barrier()
    return trainer


def _tested(
    cfg: CfgNode, trainer: Trainer, test_set: tuple[build.Dataset, str]
) -> tuple[dict[str, Any], evaluation.Assessment]:
    """Tests the best weights, or the last where none could be chosen; the model has them afterwards."""
    epoch, which, chosen = trainers.choose_weights(trainer)
    counts = trainer.extra["class_counts"]
    found = evaluation.assess(cfg, trainer.model, len(counts), test_set, counts, trainer.device, trainer.ranks)
    return {"epoch": epoch, "weights": which, "chosen_on": cfg.TRAIN.EVAL_SPLIT if chosen else None,
            "history": trainer.history, "test": found.numbers}, found  # fmt: skip


def _finish(
    run: RunContext, out_dir: Path, trainer: Trainer, test_set: tuple[build.Dataset, str], first: dict[str, Any] | None
) -> None:
    """Tests the chosen weights, and writes what a person wants to see; ``first`` is the first of two stages' result."""
    cfg, dataset = run.cfg, run.dataset
    result, found = _tested(cfg, trainer, test_set)
    weights = model_state(trainer.model, "rank 0")
    if not trainer.ranks.is_main:
        return
    tested, counts = found.numbers, trainer.extra["class_counts"]
    about = {"config": config.dump(cfg), "class_names": list(dataset.class_names), "class_counts": counts,
             "top1_err": tested["top1_err"], "mean": list(dataset.mean), "std": list(dataset.std)}  # fmt: skip
    save_weights(out_dir / "model.safetensors", weights, about)
    written = _write_plots(run, out_dir, trainer, weights, test_set)
    written += evaluation.write_csv(out_dir, "result", found, test_set[0], dataset.class_names, counts)
    unreadable = build.count_unreadable(cfg)
    for part, count in unreadable.items():
        logger.warning("%d images of %s could not be read; %s names them", count, part, build.unreadable_record(cfg))
    log_json_stats({k: v for k, v in tested.items() if not isinstance(v, list | dict)}, "test_epoch")
    result |= {
        "test_set": test_set[0].name, "test_split": test_set[1], "class_names": list(dataset.class_names),
        "unreadable": unreadable, **({} if first is None else {"stage1": first}),
    }  # fmt: skip
    summary.write(out_dir / RESULT, result)
    logger.info("\n%s\n", summary.table(result))
    logger.info("in %s: %s", out_dir, ", ".join(["model.safetensors", RESULT, *written]))


def _write_plots(
    run: RunContext, out_dir: Path, trainer: Trainer, weights: dict[str, torch.Tensor], test_set: tuple[build.Dataset, str]
) -> list[str]:
    """Draws the curves, and the features where they have two dimensions. Returns the names of the files."""
    cfg, written = run.cfg, []
    if trainer.history:
        title = f"{run.title} on {cfg.TRAIN.DATASET}"
        plots.draw_curves(out_dir / "curves.png", trainer.history, title, cfg.TRAIN.EVAL_SPLIT)
        written.append("curves.png")
    head = trainer.model.head
    if trainer.model.backbone.feature_dim == 2 and isinstance(head, Head) and not is_sharded(trainer.model.backbone):
        everything = build.build_eval_loader(cfg, *test_set, run.device, Ranks())
        features, labels = plots.collect_features(trainer.model, everything)
        prototypes = weights["head.similarity.weight"].cpu() if head.similarity.domain == "distance" else None
        title = f"{run.title}, features of {test_set[0].name}"
        plots.draw_features(out_dir / "features.png", features, labels, prototypes, list(test_set[0].class_names), title)
        written.append("features.png")
    return written
