"""Facts about the paper's fifteen data sets: published counts, and how to get the images."""

from typing import NamedTuple


class Published(NamedTuple):
    """What a complete copy holds, and where it comes from.

    Attributes:
        counts: numbers of train, val and test images in the paper's split.
        classes: number of classes K.
        torchvision: the class of torchvision that downloads it, or None.
        how: how to get it by hand.
    """

    counts: tuple[int, int, int]
    classes: int
    torchvision: str | None
    how: str


PUBLISHED = {
    "imagenet": Published(
        (1281167, 0, 50000),
        1000,
        None,
        "after registration at https://image-net.org, put ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and "
        "ILSVRC2012_devkit_t12.tar.gz into DATA_ROOT/imagenet; `prepare` unpacks them (about 150 GB)",
    ),
    "caltech101": Published(
        (4128, 1649, 2465), 100, "Caltech101", "https://data.caltech.edu/records/mzrjq-6wc02 (0.14 GB)"
    ),
    "oxford_pets": Published(
        (2944, 736, 3669), 37, "OxfordIIITPet", "https://www.robots.ox.ac.uk/~vgg/data/pets (0.8 GB)"
    ),
    "stanford_cars": Published(
        (6509, 1635, 8041),
        196,
        None,
        "the original address is gone; copies exist on Kaggle and Hugging Face. Needed: the folders cars_train/ "
        "(00001.jpg ...) and cars_test/ in DATA_ROOT/stanford_cars (1.9 GB)",
    ),
    "oxford_flowers": Published(
        (4093, 1633, 2463), 102, "Flowers102", "https://www.robots.ox.ac.uk/~vgg/data/flowers/102 (0.35 GB)"
    ),
    "food101": Published(
        (50500, 20200, 30300), 101, "Food101", "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101 (5 GB)"
    ),
    "fgvc_aircraft": Published(
        (3334, 3333, 3333), 100, "FGVCAircraft", "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft (2.8 GB)"
    ),
    "sun397": Published((15880, 3970, 19850), 397, "SUN397", "https://vision.princeton.edu/projects/2010/SUN (39 GB)"),
    "dtd": Published((2820, 1128, 1692), 47, "DTD", "https://www.robots.ox.ac.uk/~vgg/data/dtd (0.6 GB)"),
    "eurosat": Published((13500, 5400, 8100), 10, "EuroSAT", "https://github.com/phelber/EuroSAT (0.09 GB)"),
    "ucf101": Published(
        (7639, 1898, 3783),
        101,
        None,
        "the middle frames that CoOp's authors offer as UCF-101-midframes.zip, unpacked into DATA_ROOT/ucf101; or "
        "https://www.crcv.ucf.edu/data/UCF101.php: unpack UCF101.rar into DATA_ROOT/ucf101, and `prepare` takes the "
        "middle frame of each video (7 GB)",
    ),
    "imagenetv2": Published(
        (0, 0, 10000),
        1000,
        None,
        "https://huggingface.co/datasets/vaishaal/ImageNetV2: unpack imagenetv2-matched-frequency.tar.gz into "
        "DATA_ROOT/imagenetv2 (1.3 GB)",
    ),
    "imagenet_sketch": Published(
        (0, 0, 50889),
        1000,
        None,
        "https://github.com/HaohanWang/ImageNet-Sketch: unpack into DATA_ROOT/imagenet-sketch, its class folders in "
        "images/ (7 GB)",
    ),
    "imagenet_a": Published(
        (0, 0, 7500),
        200,
        None,
        "https://github.com/hendrycks/natural-adv-examples: unpack imagenet-a.tar into DATA_ROOT/imagenet-adversarial "
        "(0.7 GB)",
    ),
    "imagenet_r": Published(
        (0, 0, 30000),
        200,
        None,
        "https://github.com/hendrycks/imagenet-r: unpack imagenet-r.tar into DATA_ROOT/imagenet-rendition (2.2 GB)",
    ),
}
