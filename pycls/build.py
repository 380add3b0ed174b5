"""The composition root: from the tree of options to data sets, model, head, loaders, optimiser and schedule.

Nothing below this file sees a config node. A constructor's ``ValueError`` becomes an ``InputError`` here.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from pycls import config
from pycls.data import augment_names, rng
from pycls.data.augment import Augmentation
from pycls.data.dataset import (
    ArrayDataset,
    FileDataset,
    MissingSplit,
    check_num_classes,
    class_counts,
    resolve_root,
)
from pycls.data.dataset import with_classes as with_classes
from pycls.data.loader import EvalLoader, TrainLoader
from pycls.data.mix import mix
from pycls.data.protocol import Drawn, Protocol, draw
from pycls.data.sampler import make_sampler
from pycls.data.synthetic import synthetic
from pycls.data.unreadable import Unreadable, read_record
from pycls.engine.ema import Ema
from pycls.engine.evaluate import Evaluation, evaluate
from pycls.engine.optim import Decay, Schedule, make_optimizer, parameter_groups
from pycls.engine.sharded import class_shards, is_sharded, share_parameters
from pycls.engine.trainer import Mix, Settings
from pycls.engine.views import Views
from pycls.errors import InputError
from pycls.heads.advice import Watch, at_start
from pycls.heads.cross_entropy import CrossEntropy
from pycls.heads.head import Head
from pycls.heads.parallel import ClassShard, shard_classes
from pycls.models.classifier import Classifier
from pycls.registry import AUXILIARIES, CRITERIA, DATASETS, HEADS, MARGINS, MODELS, SIMILARITIES
from pycls.runtime.distributed import Ranks

Dataset = ArrayDataset | FileDataset


@contextlib.contextmanager
def user_errors(where: str = "") -> Iterator[None]:
    """Turns a constructor's ``ValueError`` into an :class:`InputError` that says which section it is about."""
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{where}: {error}" if where else str(error)) from error


def build_dataset(cfg: CfgNode, split: str, name: str = "") -> Dataset:
    """A part of the data set ``name`` (TRAIN.DATASET if empty)."""
    name = name or cfg.TRAIN.DATASET
    if cfg.DATA.SYNTHETIC:
        return synthetic(name, split, cfg.MODEL.NUM_CLASSES, cfg.TRAIN.IM_SIZE)
    with user_errors(name):
        root = str(resolve_root(cfg.DATA.ROOT))
        dataset = DATASETS.get(name)(**config.dataset_arguments(cfg, name, root=root, split=split))
    assert isinstance(dataset, ArrayDataset | FileDataset)
    return dataset


def build_training_set(cfg: CfgNode) -> tuple[Dataset, Drawn | None]:
    """TRAIN.SPLIT of TRAIN.DATASET as the protocol has it (subset, long tail, noise), and what was drawn for that."""
    tail, noise = cfg.DATA.LONG_TAIL, cfg.DATA.NOISE
    protocol = Protocol(
        images_per_class=cfg.TRAIN.IMAGES_PER_CLASS, profile=tail.PROFILE, imbalance=tail.IMBALANCE, largest=tail.LARGEST,
        smallest=tail.SMALLEST, noise=noise.KIND, rate=noise.RATE, pairs=noise.PAIRS, seed=cfg.DATA.SEED,
    )  # fmt: skip
    dataset, drawn = draw(build_dataset(cfg, cfg.TRAIN.SPLIT), protocol)
    found = drawn.sha256 if drawn is not None else ""
    if cfg.DATA.HASH not in ("", found):
        raise InputError(f"DATA.HASH is {cfg.DATA.HASH}, but the training set's is {found or 'none: nothing is drawn'}: these "
                         "are other data; leave it empty to train on them")  # fmt: skip
    return dataset, drawn


def build_test_set(cfg: CfgNode) -> tuple[Dataset, str]:
    """The data set to test on and its split: ``auto`` is test where there is one, else val."""
    name = cfg.TEST.DATASET or cfg.TRAIN.DATASET
    if cfg.TEST.SPLIT != "auto":
        return build_dataset(cfg, cfg.TEST.SPLIT, name), cfg.TEST.SPLIT
    try:
        return build_dataset(cfg, "test", name), "test"
    except MissingSplit:
        if cfg.TRAIN.SPLIT == "trainval" and name == cfg.TRAIN.DATASET:
            raise InputError(f"{name} has no test part, and TRAIN.SPLIT trainval trains on its val part: nothing is left "
                             "to test on; set TRAIN.SPLIT to train") from None  # fmt: skip
        return build_dataset(cfg, "val", name), "val"


def num_classes(cfg: CfgNode, dataset: Dataset) -> int:
    """MODEL.NUM_CLASSES, or as many as the data set has; every label must be below."""
    classes = cfg.MODEL.NUM_CLASSES or dataset.num_classes
    check_num_classes(dataset.labels, classes, dataset.name)
    return int(classes)


def input_of(cfg: CfgNode) -> tuple[int, int, int]:
    """Channels and side of the images, and the number of classes, of the training data, or by the options without them."""
    try:
        dataset = build_dataset(cfg, cfg.TRAIN.SPLIT)
        return dataset.channels, image_size(cfg, dataset), num_classes(cfg, dataset)
    except InputError:
        if not (cfg.MODEL.NUM_CLASSES and cfg.TRAIN.IM_SIZE):
            raise  # without the data only the options can say
        return 3, cfg.TRAIN.IM_SIZE, cfg.MODEL.NUM_CLASSES


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
        head = HEADS.get(cfg.HEAD.NAME)(**config.head_arguments(cfg, **given))
        if criterion is not None or auxiliaries:
            head = Head(head.similarity, head.margin, criterion or head.criterion, [*head.auxiliaries, *auxiliaries])
    else:
        similarity = SIMILARITIES.get(cfg.HEAD.SIMILARITY.NAME)(
            **config.part_arguments(SIMILARITIES, cfg.HEAD.SIMILARITY, **given)
        )
        margin = None
        if cfg.HEAD.MARGIN.NAME:
            margin = MARGINS.get(cfg.HEAD.MARGIN.NAME)(**config.part_arguments(MARGINS, cfg.HEAD.MARGIN, **given))
        head = Head(similarity, margin, criterion or CrossEntropy(), auxiliaries)
    head.margin_warmup, head.similarity.chunk = cfg.HEAD.MARGIN_WARMUP, cfg.HEAD.CHUNK
    if cfg.TRAIN.LABEL_SMOOTHING:
        _smooth(head, cfg.TRAIN.LABEL_SMOOTHING)
    return head


def share_out(cfg: CfgNode, model: Classifier, ranks: Ranks) -> None:
    """Leaves this process its share of the classes (HEAD.PARALLEL class) of a model that has its first weights.

    Raises:
        InputError: an option does not go with a model that is shared out.
    """
    if cfg.PARALLEL.MODE == "fsdp" and cfg.OPTIM.EMA_UPDATE_PERIOD:
        raise InputError("OPTIM.EMA_UPDATE_PERIOD: PARALLEL.MODE fsdp keeps no moving average; take ddp, or 0")
    for key, wanted in (("PARALLEL.MODE fsdp", cfg.PARALLEL.MODE == "fsdp"),
                        ("HEAD.PARALLEL class", cfg.HEAD.PARALLEL == "class")):  # fmt: skip
        if wanted and autocast_dtype(cfg) is torch.float16:
            raise InputError(f"{key} needs one scale of the gradients on all processes, which fp16 does not keep: take "
                             "TRAIN.MIXED_PRECISION bf16")  # fmt: skip
        if wanted and config.last_stage(cfg) is not cfg:
            raise InputError(f"STAGE2.METHOD {cfg.STAGE2.METHOD} takes a whole model, and {key} shares it out")
        if wanted and cfg.TEST.OPEN_SET:
            raise InputError(f"TEST.OPEN_SET is for a whole model, and {key} shares it out: test it afterwards, in one process")
    if cfg.HEAD.PARALLEL == "none":
        if cfg.HEAD.SAMPLE_RATE != 1:
            raise InputError(f"HEAD.SAMPLE_RATE {cfg.HEAD.SAMPLE_RATE} needs HEAD.PARALLEL class")
        return
    if not isinstance(model.head, Head):
        raise InputError(f"HEAD.PARALLEL class: {type(model.head).__name__} is no head of prototypes")
    with user_errors("HEAD.PARALLEL class"):
        draw = functools.partial(rng.hash64, cfg.RNG_SEED, stream=rng.NEGATIVES)
        shard_classes(model.head, ClassShard(
            model.head.similarity.num_classes, ranks.rank, ranks.world_size, cfg.HEAD.SAMPLE_RATE, draw
        ))  # fmt: skip


def _smooth(head: Any, label_smoothing: float) -> None:
    own = getattr(head.criterion, "label_smoothing", None)
    if own is None:
        raise InputError(f"TRAIN.LABEL_SMOOTHING: the criterion {type(head.criterion).__name__} knows no label smoothing")
    if own not in (0.0, label_smoothing):
        raise InputError(f"TRAIN.LABEL_SMOOTHING is {label_smoothing}, but HEAD.CRITERION.LABEL_SMOOTHING is {own}")
    head.criterion.label_smoothing = label_smoothing


def build_inspector(model: Classifier) -> Callable[[], dict[str, float]] | None:
    """What tells, once a log period, how the last batch lay to the head's prototypes; None for a head of another kind, or
    where no process has all of them."""
    return Watch(model.head).read if isinstance(model.head, Head) and not is_sharded(model) else None


def head_warnings(model: Classifier) -> list[str]:
    """What the head's numbers say before training."""
    return at_start(model.head) if isinstance(model.head, Head) else []


def image_size(cfg: CfgNode, dataset: Dataset) -> int:
    """Side of the images that the model sees."""
    return int(cfg.TRAIN.IM_SIZE or dataset.image_size)


def build_train_loader(cfg: CfgNode, dataset: Dataset, device: torch.device, ranks: Ranks) -> TrainLoader:
    """Shuffled and augmented batches."""
    with user_errors("TRAIN"):
        sampler = make_sampler(
            cfg.TRAIN.SAMPLER, dataset.labels, cfg.TRAIN.SAMPLES_PER_CLASS, cfg.TRAIN.REPEAT_THRESHOLD
        )
        return TrainLoader(
            dataset, cfg.TRAIN.BATCH_SIZE, sampler=sampler, seed=cfg.RNG_SEED, rank=ranks.rank, world_size=ranks.world_size,
            device=device, channels_last=cfg.MODEL.CHANNELS_LAST, crop_padding=cfg.TRAIN.CROP_PADDING,
            hflip={"auto": None, "on": True, "off": False}[cfg.TRAIN.HFLIP], im_size=cfg.TRAIN.IM_SIZE,
            im_sizes=cfg.TRAIN.IM_SIZES, augmentation=build_augmentation(cfg, dataset), repeats=cfg.TRAIN.REPEATS,
            num_workers=cfg.DATA_LOADER.NUM_WORKERS, pin_memory=cfg.DATA_LOADER.PIN_MEMORY,
            native=cfg.DATA_LOADER.DECODER == "auto", unreadable=_account(cfg, cfg.TRAIN.SPLIT),
        )  # fmt: skip


def build_augmentation(cfg: CfgNode, dataset: Dataset) -> Augmentation:
    """What is done to training images beside cutting and flipping; lighting to photographs only, as in pycls."""
    with user_errors("TRAIN.AUGMENT"):
        policy = augment_names.parse(cfg.TRAIN.AUGMENT)
    pca_std = cfg.TRAIN.PCA_STD if isinstance(dataset, FileDataset) else 0.0
    return Augmentation(policy, cfg.TRAIN.COLOR_JITTER, pca_std, cfg.TRAIN.ERASE_PROB)


def _account(cfg: CfgNode, split: str) -> Unreadable:
    return Unreadable(cfg.DATA.MAX_UNREADABLE, split, unreadable_record(cfg))


def unreadable_record(cfg: CfgNode) -> Path:
    """The file that names the images that could not be read."""
    return Path(cfg.OUT_DIR) / "unreadable.txt"


def count_unreadable(cfg: CfgNode) -> dict[str, int]:
    """Split -> images of it that could not be read in this run."""
    return {split: len(reasons) for split, reasons in read_record(unreadable_record(cfg)).items()}


def build_eval_loader(
    cfg: CfgNode, dataset: Dataset, split: str, device: torch.device, ranks: Ranks, whole: bool = False
) -> EvalLoader:
    """Every sample of the split once; ``whole``: not cut yet where TEST.CROPS will cut several crops out of an image."""
    size, resize = cfg.TEST.CROP_SIZE or cfg.TRAIN.IM_SIZE, cfg.TEST.IM_SIZE
    if whole and cfg.TEST.CROPS == 10:
        size = resize
    with user_errors("TEST"):
        return EvalLoader(
            dataset, cfg.TEST.BATCH_SIZE, rank=ranks.rank, world_size=ranks.world_size, device=device,
            channels_last=cfg.MODEL.CHANNELS_LAST, im_size=size, resize=resize,
            num_workers=cfg.DATA_LOADER.NUM_WORKERS, pin_memory=cfg.DATA_LOADER.PIN_MEMORY,
            native=cfg.DATA_LOADER.DECODER == "auto", unreadable=_account(cfg, split),
        )  # fmt: skip


def build_views(cfg: CfgNode, dataset: Dataset) -> Views:
    """How often the model looks at a test image."""
    size = cfg.TEST.CROP_SIZE or image_size(cfg, dataset)
    if cfg.HEAD.PARALLEL == "class" and (cfg.TEST.CROPS > 1 or cfg.TEST.TABLES):
        raise InputError("TEST.CROPS and TEST.TABLES need the logits of all classes on each process, which HEAD.PARALLEL class "
                         "does without")  # fmt: skip
    if cfg.TEST.CROPS == 10 and size >= cfg.TEST.IM_SIZE:
        raise InputError(f"TEST.CROPS 10 needs a TEST.IM_SIZE above the crops' side, {size}, to cut them from; it is "
                         f"{cfg.TEST.IM_SIZE}")  # fmt: skip
    return Views(cfg.TEST.CROPS, size)


def place(cfg: CfgNode, model: Classifier, device: torch.device) -> Classifier:
    """The model on its device, in its memory order, compiled if that is wanted."""
    if cfg.BN.SYNC:
        if device.type != "cuda":
            raise InputError(f"BN.SYNC works on GPUs, not on {device.type}")
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = model.to(device)
    if cfg.MODEL.CHANNELS_LAST:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if cfg.MODEL.COMPILE:
        model.backbone.compile()
    return model


def build_network(
    model: nn.Module, device: torch.device, ranks: Ranks, fsdp: bool = False, static_graph: bool = False
) -> nn.Module:
    """What the training loop calls: the model, its parameters shared out by FSDP2 if that is wanted, or its DDP wrapper."""
    if ranks.world_size == 1:
        return model
    if fsdp:
        own = dict(model.named_parameters())
        share_parameters(model, {own[name] for name in class_shards(model)})
        return model
    DistributedDataParallel = nn.parallel.DistributedDataParallel
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, class_shards(model))
    return DistributedDataParallel(
        model, device_ids=[device.index] if device.type == "cuda" else None, static_graph=static_graph
    )


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


def build_judge(
    cfg: CfgNode, classes: int, device: torch.device, ranks: Ranks
) -> Callable[[nn.Module], dict[str, Any]] | None:
    """What evaluates a model on TRAIN.EVAL_SPLIT; None for ``none``."""
    if cfg.TRAIN.EVAL_SPLIT == "none":
        return None
    dataset = build_dataset(cfg, cfg.TRAIN.EVAL_SPLIT)
    check_num_classes(dataset.labels, classes, dataset.name)
    loader = build_eval_loader(cfg, dataset, cfg.TRAIN.EVAL_SPLIT, device, ranks)
    return lambda model: evaluate(model, loader, Evaluation(classes, cfg.TEST.TOP_K, device))


def build_unknown_loader(cfg: CfgNode, known: Dataset, device: torch.device) -> EvalLoader:
    """The test part of TEST.OPEN_SET, normalised and sized as the known data are, whole on this process."""
    name = cfg.TEST.OPEN_SET
    dataset = build_dataset(cfg, "test", name)
    if dataset.channels != known.channels:
        raise InputError(f"TEST.OPEN_SET {name} has images of {dataset.channels} channels, {known.name} of {known.channels}")
    dataset.mean, dataset.std = known.mean, known.std
    with user_errors("TEST.OPEN_SET"):
        return EvalLoader(
            dataset, cfg.TEST.BATCH_SIZE, device=device, channels_last=cfg.MODEL.CHANNELS_LAST,
            im_size=image_size(cfg, known), num_workers=cfg.DATA_LOADER.NUM_WORKERS,
            native=cfg.DATA_LOADER.DECODER == "auto", unreadable=_account(cfg, name),
        )  # fmt: skip


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


def autocast_dtype(cfg: CfgNode) -> torch.dtype | None:
    """Of the backbone's arithmetic in training; None for float32."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16, True: torch.float16, False: None}[cfg.TRAIN.MIXED_PRECISION]
