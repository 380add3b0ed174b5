"""The composition root: from the tree of options to data sets, model, head, loaders, optimiser and schedule.

Nothing that this package calls sees a config node. A constructor's ``ValueError`` becomes an ``InputError`` here.
"""

from pycls.build.data import (
    Dataset,
    build_augmentation,
    build_dataset,
    build_eval_loader,
    build_test_set,
    build_test_time_augmentation,
    build_train_loader,
    build_training_set,
    build_unknown_loader,
    count_unreadable,
    image_size,
    input_of,
    match_classes,
    num_classes,
    unreadable_record,
)
from pycls.build.errors import user_errors
from pycls.build.model import (
    autocast_dtype,
    build_head,
    build_head_stats,
    build_model,
    build_network,
    head_warnings,
    place,
    shard_model,
)
from pycls.build.overlap import refuse_own_test_set, refuse_trained_on
from pycls.build.training import (
    build_ema,
    build_evaluator,
    build_mix,
    build_optimizer,
    build_schedule,
    build_settings,
)
from pycls.data.dataset import absent_classes, check_num_classes, class_counts

__all__ = [
    "Dataset",
    "absent_classes",
    "autocast_dtype",
    "build_augmentation",
    "build_dataset",
    "build_ema",
    "build_eval_loader",
    "build_evaluator",
    "build_head",
    "build_head_stats",
    "build_mix",
    "build_model",
    "build_network",
    "build_optimizer",
    "build_schedule",
    "build_settings",
    "build_test_set",
    "build_test_time_augmentation",
    "build_train_loader",
    "build_training_set",
    "build_unknown_loader",
    "check_num_classes",
    "class_counts",
    "count_unreadable",
    "head_warnings",
    "image_size",
    "input_of",
    "match_classes",
    "num_classes",
    "place",
    "refuse_own_test_set",
    "refuse_trained_on",
    "shard_model",
    "unreadable_record",
    "user_errors",
]  # fmt: skip
