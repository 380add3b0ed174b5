"""``--mode test``: weights on the test data."""

import logging

from yacs.config import CfgNode

from pycls import build, config, zoo
from pycls.errors import InputError
from pycls.models.pretrained import load_into
from pycls.report import summary
from pycls.run import evaluation, setup
from pycls.runtime.files import make_out_dir
from pycls.runtime.launch import launch_local
from pycls.runtime.log import setup_logging

logger = logging.getLogger(__name__)

def test(cfg: CfgNode) -> int:
    """Evaluates TEST.WEIGHTS, or the best weights in OUT_DIR, on the test data. Returns the exit code."""
    last = config.last_stage(cfg)
    path = cfg.TEST.WEIGHTS or setup.best_in(last)
    if setup.processes_to_launch(cfg):
        return launch_local(setup.processes_to_launch(cfg))
    with setup.process_group(cfg) as (device, ranks):
        setup_logging(None, ranks.rank)
        weights = zoo.load(path)
        dataset, split = build.build_test_set(cfg)
        build.refuse_trained_on(cfg, dataset, split, weights.about, weights.source)
        dataset = build.match_classes(cfg, dataset, weights.class_names, weights.source, weights.data)
        classes = build.num_classes(cfg, dataset)
        model = build.build_model(last, dataset.channels, build.image_size(cfg, dataset), classes)
        load_into(model, weights)
        build.shard_model(cfg, model, ranks)
        model = build.place(cfg, model, device)
        counts = weights.about.get("class_counts")
        if counts is not None and len(counts) != classes:
            raise InputError(f"{weights.source}: its entry class_counts has {len(counts)} numbers; it should have one for each "
                             f"of the model's {classes} classes")  # fmt: skip
        found = evaluation.assess(cfg, model, classes, (dataset, split), counts, device, ranks)
        if ranks.is_main:
            evaluation.write_csv(make_out_dir(cfg.OUT_DIR), "test", found, dataset, dataset.class_names, counts)
            result = {"test": found.numbers, "test_set": dataset.name, "test_split": split, "weights": weights.source,
                      "epoch": weights.about.get("epoch"), "class_names": list(dataset.class_names)}  # fmt: skip
            evaluation.report(cfg, "test.json", result, summary.table(result))
    return 0
