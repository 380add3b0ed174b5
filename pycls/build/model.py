"""From the options to the model: backbone and head, on its device, sharded among processes if that is wanted."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from pycls import config
from pycls.build.errors import user_errors
from pycls.data import rng
from pycls.data.dataset import class_counts
from pycls.engine.checkpoint.sharded import class_shards, is_sharded, shard_parameters
from pycls.errors import InputError
from pycls.heads.cross_entropy import CrossEntropy
from pycls.heads.diagnostics import HeadMonitor, static_warnings
from pycls.heads.head import Head
from pycls.heads.parallel.shards import ClassShard, shard_classes
from pycls.heads.parts import Criterion
from pycls.models.classifier import Classifier
from pycls.models.recompute import blocks_of, recompute_blocks
from pycls.registry import AUXILIARIES, CRITERIA, HEADS, MARGINS, MODELS, SIMILARITIES
from pycls.runtime.distributed import Ranks


def build_model(
    cfg: CfgNode, in_channels: int, image_size: int, classes: int, labels: Tensor | None = None, storage: bool = True
) -> Classifier:
    """The classifier.

    Args:
        cfg: the tree.
        in_channels: channels of an image.
        image_size: side of an image.
        classes: K.
        labels: of the training set, for heads that need its class counts. None where the counts come with the weights.
        storage: False for a backbone without weights (on the meta device), to be described and not to be run.
    """
    counts = class_counts(labels, classes) if labels is not None else torch.ones(classes, dtype=torch.int64)
    with user_errors(cfg.MODEL.TYPE), contextlib.nullcontext() if storage else torch.device("meta"):
        backbone = MODELS.get(cfg.MODEL.TYPE)(
            **config.model_arguments(cfg, in_channels=in_channels, image_size=image_size)
        )
    _check_other_sizes(cfg, backbone)
    with user_errors("HEAD"):
        head = build_head(cfg, backbone.feature_dim, classes, counts)
    return Classifier(backbone, head)


def _check_other_sizes(cfg: CfgNode, backbone: Any) -> None:
    """A net that was built for one size of images has an attribute ``image_size``."""
    own = getattr(backbone, "image_size", None)
    for key, sides in (("TEST.CROP_SIZE", [cfg.TEST.CROP_SIZE]), ("TRAIN.IM_SIZES", [side for _, side in cfg.TRAIN.IM_SIZES])):
        if own is not None and set(sides) - {0, own}:
            raise InputError(f"{key}: {cfg.MODEL.TYPE} takes images of one size, TRAIN.IM_SIZE, which is {own}")


def build_head(cfg: CfgNode, in_features: int, classes: int, counts: Tensor) -> nn.Module:
    """The head by name or by parts, with the criterion and the auxiliary losses that are asked for besides."""
    given = {"in_features": in_features, "num_classes": classes, "class_counts": counts}
    auxiliaries = [AUXILIARIES.get(a["NAME"])(**config.part_arguments(AUXILIARIES, a, **given))
                   for a in cfg.HEAD.AUXILIARIES]  # fmt: skip
    criterion = None
    if cfg.HEAD.CRITERION.NAME:
        criterion = CRITERIA.get(cfg.HEAD.CRITERION.NAME)(**config.part_arguments(CRITERIA, cfg.HEAD.CRITERION, **given))
    if cfg.HEAD.NAME:
        named: nn.Module = HEADS.get(cfg.HEAD.NAME)(**config.head_arguments(cfg, **given))
        if not isinstance(named, Head):
            _refuse_parts(cfg, named)
            return named
        similarity, margin, criterion = named.similarity, named.margin, criterion or named.criterion
        auxiliaries = [*named.auxiliaries, *auxiliaries]
    else:
        similarity = SIMILARITIES.get(cfg.HEAD.SIMILARITY.NAME)(
            **config.part_arguments(SIMILARITIES, cfg.HEAD.SIMILARITY, **given)
        )
        margin = None
        if cfg.HEAD.MARGIN.NAME:
            margin = MARGINS.get(cfg.HEAD.MARGIN.NAME)(**config.part_arguments(MARGINS, cfg.HEAD.MARGIN, **given))
    criterion = _smoothed(criterion or CrossEntropy(), cfg.TRAIN.LABEL_SMOOTHING)
    return Head(similarity, margin, criterion, auxiliaries, cfg.HEAD.MARGIN_WARMUP, cfg.HEAD.CHUNK)


def _refuse_parts(cfg: CfgNode, head: nn.Module) -> None:
    """Raises InputError for options that only a head composed of parts has."""
    options = {"HEAD.CRITERION.NAME": cfg.HEAD.CRITERION.NAME, "HEAD.AUXILIARIES": cfg.HEAD.AUXILIARIES,
               "HEAD.MARGIN_WARMUP": cfg.HEAD.MARGIN_WARMUP, "HEAD.CHUNK": cfg.HEAD.CHUNK,
               "TRAIN.LABEL_SMOOTHING": cfg.TRAIN.LABEL_SMOOTHING, "TEST.OPEN_SET": cfg.TEST.OPEN_SET}  # fmt: skip
    for key, value in options.items():
        if value:
            raise InputError(f"{key} {value}: the head {cfg.HEAD.NAME} ({type(head).__name__}) is not composed of parts")


def _smoothed(criterion: Criterion, label_smoothing: float) -> Criterion:
    """The criterion with TRAIN.LABEL_SMOOTHING."""
    if not label_smoothing:
        return criterion
    if not isinstance(criterion, CrossEntropy):
        raise InputError(f"TRAIN.LABEL_SMOOTHING: the criterion {type(criterion).__name__} knows no label smoothing")
    if criterion.label_smoothing not in (0.0, label_smoothing):
        raise InputError(f"TRAIN.LABEL_SMOOTHING is {label_smoothing}, but HEAD.CRITERION.LABEL_SMOOTHING is "
                         f"{criterion.label_smoothing}")  # fmt: skip
    return criterion.with_label_smoothing(label_smoothing)


def shard_model(cfg: CfgNode, model: Classifier, ranks: Ranks) -> None:
    """Leaves this process its shard of the classes (HEAD.PARALLEL class) of a model that has its first weights.

    Raises:
        InputError: an option does not go with a sharded model.
    """
    if cfg.PARALLEL.MODE == "fsdp" and cfg.OPTIM.EMA_UPDATE_PERIOD:
        raise InputError("OPTIM.EMA_UPDATE_PERIOD: PARALLEL.MODE fsdp keeps no moving average; take ddp, or 0")
    for key, wanted in (("PARALLEL.MODE fsdp", cfg.PARALLEL.MODE == "fsdp"),
                        ("HEAD.PARALLEL class", cfg.HEAD.PARALLEL == "class")):  # fmt: skip
        if wanted and autocast_dtype(cfg) is torch.float16:
            raise InputError(f"{key} needs one scale of the gradients on all processes, which fp16 does not keep: take "
                             "TRAIN.MIXED_PRECISION bf16")  # fmt: skip
        if wanted and config.last_stage(cfg) is not cfg:
            raise InputError(f"STAGE2.METHOD {cfg.STAGE2.METHOD} takes a whole model, and {key} shards it")
        if wanted and cfg.TEST.OPEN_SET:
            raise InputError(f"TEST.OPEN_SET is for a whole model, and {key} shards it: test it afterwards, in one process")
    if cfg.HEAD.PARALLEL == "none":
        if cfg.HEAD.SAMPLE_RATE != 1:
            raise InputError(f"HEAD.SAMPLE_RATE {cfg.HEAD.SAMPLE_RATE} needs HEAD.PARALLEL class")
        return
    if not isinstance(model.head, Head):
        raise InputError(f"HEAD.PARALLEL class: {type(model.head).__name__} is not a head of prototypes")
    with user_errors("HEAD.PARALLEL class"):
        hash_fn = functools.partial(rng.hash64, cfg.RNG_SEED, stream=rng.NEGATIVES)
        shard_classes(model.head, ClassShard(
            model.head.similarity.num_classes, ranks.rank, ranks.world_size, cfg.HEAD.SAMPLE_RATE, hash_fn
        ))  # fmt: skip


def build_head_stats(model: Classifier) -> Callable[[], dict[str, float]] | None:
    """() -> statistics of the head on the last batch; None for a head of another kind, or where no process has all of its
    prototypes."""
    return HeadMonitor(model.head).read if isinstance(model.head, Head) and not is_sharded(model) else None


def head_warnings(model: Classifier) -> list[str]:
    """Warnings that follow from the head's options and sizes, before training."""
    return static_warnings(model.head) if isinstance(model.head, Head) else []


def place(cfg: CfgNode, model: Classifier, device: torch.device) -> Classifier:
    """The model on its device, in its memory order, with its blocks computed again and compiled if that is wanted."""
    if cfg.BN.SYNC:
        if device.type != "cuda":
            raise InputError(f"BN.SYNC works on GPUs, not on {device.type}")
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = model.to(device)
    if cfg.MODEL.CHANNELS_LAST:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if cfg.MODEL.ACTIVATION_CHECKPOINTING:
        with user_errors("MODEL.ACTIVATION_CHECKPOINTING"):
            recompute_blocks(model.backbone)
    if cfg.MODEL.COMPILE:
        model.backbone.compile(mode=None if cfg.MODEL.COMPILE is True else cfg.MODEL.COMPILE)
    return model


def build_network(
    model: nn.Module, device: torch.device, ranks: Ranks, fsdp: bool = False, static_graph: bool = False
) -> nn.Module:
    """What the training loop calls: the model, its parameters sharded by FSDP2 if that is wanted, or its DDP wrapper."""
    if ranks.world_size == 1:
        return model
    if fsdp:
        own = dict(model.named_parameters())
        backbone, head = model.get_submodule("backbone"), model.get_submodule("head")
        blocks = blocks_of(backbone) or [child for child in backbone.children() if next(child.parameters(), None) is not None]
        shard_parameters(model, [*blocks, head], {own[name] for name in class_shards(model)})
        return model
    DistributedDataParallel = nn.parallel.DistributedDataParallel
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, class_shards(model))
    return DistributedDataParallel(
        model, device_ids=[device.index] if device.type == "cuda" else None, static_graph=static_graph
    )


def autocast_dtype(cfg: CfgNode) -> torch.dtype | None:
    """Of the backbone's arithmetic in training; None for float32."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16, True: torch.float16, False: None}[cfg.TRAIN.MIXED_PRECISION]
