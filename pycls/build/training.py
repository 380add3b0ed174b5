"""From the options to what a training needs beside model and loader."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

from pycls.build.data import build_dataset, build_eval_loader
from pycls.build.errors import user_errors
from pycls.build.model import autocast_dtype
from pycls.data.augment.mix import mix
from pycls.data.dataset import (
    check_num_classes,
)
from pycls.engine.ema import Ema
from pycls.engine.evaluate import Evaluation, evaluate
from pycls.engine.optim import Decay, Schedule, make_optimizer, parameter_groups
from pycls.engine.trainer import Mix, Settings
from pycls.errors import InputError
from pycls.runtime.distributed import Ranks


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser over the backbone's and the head's parameters, each with its weight decay and learning rate."""
    decay = Decay(
        default=cfg.OPTIM.WEIGHT_DECAY,
        norm=cfg.BN.CUSTOM_WEIGHT_DECAY if cfg.BN.USE_CUSTOM_WEIGHT_DECAY else None,
        layer_norm=cfg.LN.CUSTOM_WEIGHT_DECAY if cfg.LN.USE_CUSTOM_WEIGHT_DECAY else None,
        bias=cfg.OPTIM.BIAS_CUSTOM_WEIGHT_DECAY if cfg.OPTIM.BIAS_USE_CUSTOM_WEIGHT_DECAY else None,
        head=cfg.HEAD.WEIGHT_DECAY if cfg.HEAD.WEIGHT_DECAY >= 0 else None,
        head_lr_mult=cfg.HEAD.LR_MULT,
    )
    with user_errors("OPTIM"):
        return make_optimizer(
            parameter_groups(model, decay), cfg.OPTIM.OPTIMIZER, momentum=cfg.OPTIM.MOMENTUM,
            dampening=cfg.OPTIM.DAMPENING, nesterov=cfg.OPTIM.NESTEROV, betas=(cfg.OPTIM.BETA1, cfg.OPTIM.BETA2),
        )  # fmt: skip


def build_schedule(cfg: CfgNode) -> Schedule:
    """The learning rate by epoch."""
    o = cfg.OPTIM
    return Schedule(
        base_lr=o.BASE_LR, max_epoch=o.MAX_EPOCH, policy=o.LR_POLICY, exp_rate=o.EXP_RATE, steps=o.STEPS,
        lr_mult=o.LR_MULT, min_lr=o.MIN_LR, warmup_epochs=o.WARMUP_EPOCHS, warmup_factor=o.WARMUP_FACTOR,
    )  # fmt: skip


def build_ema(cfg: CfgNode, model: nn.Module) -> Ema | None:
    """The moving average of the model, if one is wanted."""
    period = cfg.OPTIM.EMA_UPDATE_PERIOD
    if not period:
        return None
    return Ema(model, Ema.share(cfg.OPTIM.EMA_ALPHA, cfg.TRAIN.BATCH_SIZE, cfg.OPTIM.MAX_EPOCH, period), period)


def build_mix(cfg: CfgNode, ranks: Ranks) -> Mix | None:
    """Mixup and CutMix, if they are wanted."""
    mixup, cutmix = cfg.TRAIN.MIXUP_ALPHA, cfg.TRAIN.CUTMIX_ALPHA
    if not (mixup or cutmix):
        return None
    return lambda images, labels, step: mix(images, labels, cfg.RNG_SEED, step, mixup, cutmix, ranks.rank)


def build_evaluator(
    cfg: CfgNode, classes: int, device: torch.device, ranks: Ranks
) -> Callable[[nn.Module], dict[str, Any]] | None:
    """What evaluates a model on TRAIN.EVAL_SPLIT; None for ``none``."""
    if cfg.TRAIN.EVAL_SPLIT == "none":
        return None
    dataset = build_dataset(cfg, cfg.TRAIN.EVAL_SPLIT)
    check_num_classes(dataset.labels, classes, dataset.name)
    loader = build_eval_loader(cfg, dataset, cfg.TRAIN.EVAL_SPLIT, device, ranks)
    return lambda model: evaluate(model, loader, Evaluation(classes, cfg.TEST.TOP_K, device))


def build_settings(cfg: CfgNode, classes: int, ranks: Ranks) -> Settings:
    """The loop's numbers."""
    if cfg.TRAIN.BATCH_SIZE % (ranks.world_size * cfg.TRAIN.ACCUM_STEPS):
        raise InputError(f"TRAIN.BATCH_SIZE {cfg.TRAIN.BATCH_SIZE} cannot be divided by {ranks.world_size} processes x "
                         f"TRAIN.ACCUM_STEPS {cfg.TRAIN.ACCUM_STEPS}")  # fmt: skip
    return Settings(
        max_epoch=cfg.OPTIM.MAX_EPOCH, seed=cfg.RNG_SEED, batch_size=cfg.TRAIN.BATCH_SIZE,
        accum_steps=cfg.TRAIN.ACCUM_STEPS, clip_norm=cfg.OPTIM.CLIP_NORM, autocast=autocast_dtype(cfg),
        eval_period=cfg.TRAIN.EVAL_PERIOD, checkpoint_period=cfg.TRAIN.CHECKPOINT_PERIOD,
        checkpoint_steps=cfg.TRAIN.CHECKPOINT_STEPS, log_period=cfg.LOG_PERIOD, top_k=min(cfg.TEST.TOP_K, classes),
    )  # fmt: skip
