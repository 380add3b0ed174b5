"""Files that cannot be read: all kinds are found, named, replaced or left out, and counted exactly."""

import logging
from pathlib import Path

import pytest
import torch
from bad_files import BAD, photograph, write_bad

from pycls.data.images.crops import eval_crop
from pycls.data.images.decoding import decode, decode_crop
from pycls.data.images.jpeg_decoder import jpeg_decoder
from pycls.data.loader import EvalLoader, TrainLoader
from pycls.data.sets.image_folder import ImageFolder
from pycls.data.sources.unreadable import Unreadable, read_record
from pycls.errors import RunError


@pytest.mark.parametrize("kind", BAD)
def test_every_kind_is_refused_by_both_decoders(kind: str) -> None:
    data = BAD[kind]()
    with pytest.raises(Exception):  # noqa: B017  # decoders raise nearly anything
        decode(data)
    decoder = jpeg_decoder()
    if decoder is not None:
        with pytest.raises(Exception):  # noqa: B017
            decode_crop(data, lambda height, width: eval_crop(height, width, 8, 9), 8, decoder)


def write_folder(root: Path, good: int, bad: int) -> set[str]:
    """Ten classes in turn, tiny images; the names of the bad ones."""
    names = set()
    for k in range(10):
        (root / f"class{k}").mkdir(parents=True)
    for i in range(good):
        photograph(20 + i % 7, 18 + i % 5, i % 10).save(root / f"class{i % 10}" / f"{i:04}.jpg")
    kinds = list(BAD)
    for i in range(bad):
        names.add(str(write_bad(root / f"class{(i // 20) % 10}", kinds[i % 20], i)))
    return names


def test_two_hundred_among_two_thousand(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = write_folder(tmp_path / "train", 2000, 200)
    data = ImageFolder(str(tmp_path), "trainval", im_size=8, val_size=1)
    assert len(data) == 2200
    record = tmp_path / "unreadable.txt"
    account = Unreadable(200, "train", record)
    with caplog.at_level(logging.WARNING):
        loader = TrainLoader(data, 44, seed=3, num_workers=2, unreadable=account)
        for epoch in range(2):
            seen = 0
            for batch in loader.epoch(epoch):
                seen += len(batch.ids)
                assert batch.labels.tolist() == data.labels[batch.ids].tolist()
                assert not {data.describe(i) for i in batch.ids.tolist()} & names
            assert seen == 2200
    assert set(account.reasons) == names and all(account.reasons.values())
    assert len([r for r in caplog.records if "is left out" in r.message]) == 200, "each is named once"
    assert set(read_record(record)["train"]) == names

    again = Unreadable(200, "train", record)  # a run that is continued knows them
    list(TrainLoader(data, 44, seed=3, unreadable=again).epoch(2))
    assert set(again.reasons) == names and len(record.read_text().splitlines()) == 200

    with pytest.raises(RunError, match=r"with it 200 images of train are unreadable, and DATA\.MAX_UNREADABLE is 199"):
        list(TrainLoader(data, 44, seed=3, unreadable=Unreadable(199, "train")).epoch(0))


def test_substitutes_are_of_the_class_and_always_the_same(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", 60, 40)
    data = ImageFolder(str(tmp_path), "trainval", im_size=8, val_size=1)
    runs = []
    for workers, world_size in ((0, 1), (2, 1), (0, 2)):
        shares = [{"rank": r, "world_size": world_size, "num_workers": workers} for r in range(world_size)]
        loaders = [TrainLoader(data, 20, seed=1, unreadable=Unreadable(40, "train"), **share) for share in shares]
        runs.append([
            (torch.cat([b.ids for b in parts]), torch.cat([b.images for b in parts]))
            for parts in zip(*(loader.epoch(4) for loader in loaders), strict=True)
        ])  # fmt: skip
    planned = TrainLoader(data, 20, seed=1)._sampler.draws(1, 4)
    shown = torch.cat([ids for ids, _ in runs[0]])
    assert not torch.equal(planned, shown) and torch.equal(data.labels[planned], data.labels[shown])
    for other in runs[1:]:
        assert all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(runs[0], other, strict=True))


def test_a_class_of_which_nothing_can_be_read_is_replaced_by_others(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", 50, 0)
    for file in (tmp_path / "train" / "class3").iterdir():
        file.write_bytes(b"")
    data = ImageFolder(str(tmp_path), "trainval", im_size=8, val_size=1)
    for batch in TrainLoader(data, 10, unreadable=Unreadable(5, "train")).epoch(0):
        assert torch.equal(batch.labels, data.labels[batch.ids]) and 3 not in batch.labels


def test_nothing_readable_ends_in_one_line(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", 0, 200)
    data = ImageFolder(str(tmp_path), "trainval", im_size=8, val_size=1)
    with pytest.raises(RunError, match="41 images in a row cannot be read; the last is "):
        list(TrainLoader(data, 10, unreadable=Unreadable(500, "train")).epoch(0))


@pytest.mark.parametrize("world_size", [1, 3])
def test_evaluation_leaves_them_out_and_counts_them(tmp_path: Path, world_size: int) -> None:
    names = write_folder(tmp_path / "val", 60, 40)
    data = ImageFolder(str(tmp_path), "val", im_size=8)
    account = Unreadable(40, "val")
    loaders = [EvalLoader(data, 4, rank=r, world_size=world_size, unreadable=account) for r in range(world_size)]
    for _ in range(2):  # counted again in every pass
        batches = [batch for loader in loaders for batch in loader]
        assert all(len(batch.ids) == len(batch.images) == len(batch.labels) > 0 for batch in batches)
        shown = [i for batch in batches for i in batch.ids.tolist()]
        assert sorted(shown) == [i for i in range(100) if data.describe(i) not in names]
        assert sum(loader.left_out for loader in loaders) == 40 == len(account.reasons)
