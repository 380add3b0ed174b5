"""timm's training step for benchmarks/train_step.py: its train.py from its own components; its wheel has no script.

Its loop is: data time, forward, loss, backward, optimiser, ``loss.item()`` into a meter, gradients to None, a line at the log
interval, the scheduler's update. Its best settings on a CPU are taken: channels-last, ``--opt-kwargs fused=True``, no
moving average, float32; loss, optimiser, scheduler, meters and loader are timm's.
"""

import logging
import time
from collections.abc import Callable, Iterable

import numpy as np
import torch
from PIL import Image
from timm.data import create_loader
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter
from torch import Tensor, nn
from torch.utils.data import Dataset

from pycls.data.dataset import ArrayDataset

LOG_INTERVAL = 50
"""Its default."""

Epochs = Callable[[int], Iterable[tuple[Tensor, Tensor]]]
"""Number of the epoch -> batches of images and labels."""

logger = logging.getLogger(__name__)


class Images(Dataset):  # type: ignore[type-arg]
    """Images in memory as timm's loader wants them: it sets ``transform``, which takes a PIL image."""

    def __init__(self, dataset: ArrayDataset) -> None:
        self.images = dataset.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = dataset.labels.tolist()
        self.transform: Callable[[Image.Image], np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[object, int]:
        image = Image.fromarray(self.images[index])
        return self.transform(image) if self.transform else image, self.labels[index]


def its_loader(dataset: ArrayDataset, batch: int, workers: int) -> Epochs:
    """timm's loader with its prefetcher: a crop that is the whole image, and a flip."""
    side = dataset.image_size
    loader = create_loader(
        Images(dataset), (dataset.channels, side, side), batch, is_training=True, scale=(1.0, 1.0), ratio=(1.0, 1.0),
        hflip=0.5 if dataset.hflip else 0.0, color_jitter=None, interpolation="bilinear", mean=dataset.mean, std=dataset.std,
        num_workers=workers, persistent_workers=True, pin_memory=False, device=torch.device("cpu"),
    )  # fmt: skip
    return lambda number: loader


class TimmLoop:
    """One training by timm's loop.

    Args:
        net: images -> logits.
        epochs: the batches.
        steps: in an epoch.
        lr: learning rate.
        weight_decay: of all but biases and batch norm, as timm has it.
    """

    def __init__(self, net: nn.Module, epochs: Epochs, steps: int, lr: float, weight_decay: float) -> None:
        self.net = net.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.epochs, self.steps, self.number = epochs, steps, 0
        self.loss = nn.CrossEntropyLoss()
        self.optimizer = create_optimizer_v2(self.net, "sgd", lr=lr, weight_decay=weight_decay, momentum=0.9, fused=True)
        self.scheduler, _ = create_scheduler_v2(self.optimizer, "cosine", num_epochs=300, updates_per_epoch=steps)

    def epoch(self) -> None:
        """One pass over the data."""
        update_time, data_time, losses = AverageMeter(), AverageMeter(), AverageMeter()
        updates = self.number * self.steps
        data_start = update_start = time.time()
        self.optimizer.zero_grad()
        for index, (images, labels) in enumerate(self.epochs(self.number)):
            images = images.contiguous(memory_format=torch.channels_last)
            data_time.update(time.time() - data_start)
            loss = self.loss(self.net(images), labels)
            loss.backward()
            self.optimizer.step()
            losses.update(loss.item(), len(images))
            updates += 1
            self.optimizer.zero_grad()
            now = time.time()
            update_time.update(now - update_start)
            update_start = now
            if index % LOG_INTERVAL == 0:
                rates = [group["lr"] for group in self.optimizer.param_groups]
                logger.info("%d [%d/%d] loss %.3g (%.3g), %.3f s (%.3f s), data %.3f (%.3f), lr %.3e", self.number, index,
                            self.steps, losses.val, losses.avg, update_time.val, update_time.avg, data_time.val,
                            data_time.avg, sum(rates) / len(rates))  # fmt: skip
            self.scheduler.step_update(num_updates=updates, metric=losses.avg)
            data_start = time.time()
        self.number += 1
        self.scheduler.step(self.number)
