"""``--mode time``: how long a training step, a test step and loading take."""

import logging

from yacs.config import CfgNode

from pycls import build
from pycls.engine.timing import time_steps
from pycls.report import summary
from pycls.run import evaluation, setup
from pycls.run.context import title
from pycls.runtime.log import setup_logging

logger = logging.getLogger(__name__)

def time(cfg: CfgNode) -> int:
    """Measures the training step, the test step, the loader, and loader and step together. Returns the exit code."""
    with setup.process_group(cfg) as (device, ranks):
        setup_logging(None, ranks.rank)
        dataset, _ = build.build_training_set(cfg)
        classes = build.num_classes(cfg, dataset)
        model = build.build_model(cfg, dataset.channels, build.image_size(cfg, dataset), classes, dataset.labels)
        model = build.place(cfg, model, device)
        logger.info("%s on %s: %d steps of %d images on %s", title(cfg), dataset.name, cfg.PREC_TIME.NUM_ITER,
                    cfg.TRAIN.BATCH_SIZE, device)  # fmt: skip
        loader = build.build_train_loader(cfg, dataset, device, ranks)
        times = time_steps(
            model, build.build_optimizer(cfg, model), loader, device,
            warmup=cfg.PREC_TIME.WARMUP_ITER, count=cfg.PREC_TIME.NUM_ITER, autocast=build.autocast_dtype(cfg),
        )  # fmt: skip
        if ranks.is_main:
            evaluation.report(cfg, "time.json", times, summary.timing(times, cfg.TRAIN.BATCH_SIZE, loader.decodes_on_device))
    return 0
