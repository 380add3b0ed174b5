"""The long-tailed sets that are published as lists: ImageNet-LT, Places-LT, iNaturalist.

Liu et al., "Large-scale long-tailed recognition in an open world", CVPR 2019 (ImageNet-LT, Places-LT); Van Horn et al., "The
iNaturalist species classification and detection dataset", CVPR 2018. The lists are those of these authors and of Kang et
al., ICLR 2020.
"""

from typing import Annotated

from pycls.data.dataset import Split, resolve_root
from pycls.data.index.lists import read_list
from pycls.data.index.places import path_under
from pycls.data.sets.image_list import ListedImages, Lists
from pycls.errors import InputError
from pycls.ranges import COUNT
from pycls.registry import DATASETS


def _lists(section: str, root: str, folder: str, lists: str, names: dict[str, str]) -> Lists:
    top = resolve_root(root)
    where = path_under(top, lists, f"{section}.LISTS")
    return Lists({part: where / name for part, name in names.items()}, path_under(top, folder, f"{section}.FOLDER"),
                 options=dict.fromkeys(names, f"{section}.LISTS"), folder_option=f"{section}.FOLDER")  # fmt: skip


@DATASETS.register("imagenet_lt")
def imagenet_lt(
    root: str, split: Split, folder: str = "imagenet", lists: str = "imagenet_lt", im_size: Annotated[int, COUNT] = 224
) -> ListedImages:
    """ImageNet-LT: 115,846 training images of 1,000 classes, 1,280 to 5 each; val 20,000, test 50,000.

    Its val images are of ImageNet's training part, its test images are ImageNet's validation images.

    Args:
        root: folder of the data sets.
        split: train, val, trainval or test.
        folder: ImageNet, with its folders train and val.
        lists: the folder of ImageNet_LT_train.txt, ImageNet_LT_val.txt and ImageNet_LT_test.txt.
        im_size: side of an image in a batch, in pixels.
    """
    found = _lists("IMAGENET_LT", root, folder, lists, {part: f"ImageNet_LT_{part}.txt" for part in ("train", "val", "test")})
    for part, origin in (("val", b"train/"), ("test", b"val/")):
        if split == part and not read_list(found.files[part], option=found.options[part]).paths[0].startswith(origin):
            raise InputError(f"{found.options[part]}: {found.files[part]} is not the {part} list, whose images are in "
                             f"{origin.decode()} of ImageNet")  # fmt: skip
    return ListedImages("imagenet_lt", found, split, im_size)


@DATASETS.register("places_lt")
def places_lt(
    root: str, split: Split, folder: str = "places", lists: str = "places_lt", im_size: Annotated[int, COUNT] = 224
) -> ListedImages:
    """Places-LT: 62,500 training images of 365 classes, 4,980 to 5 each; val 7,300, test 36,500.

    Args:
        root: folder of the data sets.
        split: train, val, trainval or test.
        folder: Places 365, what the paths in the lists are relative to.
        lists: the folder of Places_LT_train.txt, Places_LT_val.txt and Places_LT_test.txt.
        im_size: side of an image in a batch, in pixels.
    """
    found = _lists("PLACES_LT", root, folder, lists, {part: f"Places_LT_{part}.txt" for part in ("train", "val", "test")})
    return ListedImages("places_lt", found, split, im_size)


@DATASETS.register("inaturalist2018")
def inaturalist2018(
    root: str,
    split: Split,
    folder: str = "inaturalist2018",
    lists: str = "inaturalist2018",
    im_size: Annotated[int, COUNT] = 224,
) -> ListedImages:
    """iNaturalist 2018: 437,513 training images of 8,142 species; val 24,426, on which results are reported.

    Args:
        root: folder of the data sets.
        split: train, val or trainval; the labels of its test images are not public.
        folder: what the paths in the lists are relative to; holds train_val2018.
        lists: the folder of iNaturalist18_train.txt and iNaturalist18_val.txt.
        im_size: side of an image in a batch, in pixels.
    """
    found = _lists("INATURALIST2018", root, folder, lists, {part: f"iNaturalist18_{part}.txt" for part in ("train", "val")})
    return ListedImages("inaturalist2018", found, split, im_size)


@DATASETS.register("inaturalist2019")
def inaturalist2019(
    root: str,
    split: Split,
    folder: str = "inaturalist2019",
    lists: str = "inaturalist2019",
    im_size: Annotated[int, COUNT] = 224,
) -> ListedImages:
    """iNaturalist 2019: 265,213 training images of 1,010 species; val 3,030, on which results are reported.

    Args:
        root: folder of the data sets.
        split: train, val or trainval; the labels of its test images are not public.
        folder: what the paths in the lists are relative to; holds train_val2019.
        lists: the folder of iNaturalist19_train.txt and iNaturalist19_val.txt.
        im_size: side of an image in a batch, in pixels.
    """
    found = _lists("INATURALIST2019", root, folder, lists, {part: f"iNaturalist19_{part}.txt" for part in ("train", "val")})
    return ListedImages("inaturalist2019", found, split, im_size)
