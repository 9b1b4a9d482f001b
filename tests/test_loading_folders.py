"""Folders of images: parts, classes, preprocessing equal to torchvision's, one line for what is wrong."""

import numpy as np
import pytest
import torch
from PIL import Image

from compress.errors import DataError
from compress.loading.data import open_data
from compress.loading.folders import read_classes
from compress.loading.preprocessing import Preprocessing, adjusted, from_torchvision
from compress.loading.torchvision_ops import torchvision

RNG = np.random.default_rng(0)


def picture(path, size=(40, 30), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], len(mode))
    Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8), mode).save(path)
    return path


def opened(folder, **options):
    return open_data(f"imagefolder:{folder}", **{"resize": 16, **options})


def labels(data, part):
    return sorted({int(label) for _, label in getattr(data, part)})


def test_parts(tmp_path):
    for part, count in (("train", 9), ("calibration", 3), ("val", 4)):
        for name in ("cat", "dog"):
            for index in range(count):
                picture(tmp_path / part / name / f"{index}.png")
    data = opened(tmp_path)
    assert data.sizes() == {"train": 18, "calibration": 6, "test": 8}
    assert (data.classes, data.num_classes, data.input_shape) == (("cat", "dog"), 2, (3, 16, 16))


def test_one_folder_is_split(tmp_path):
    for name in ("bus", "train"):  # a class that is called as a part is
        for index in range(10):
            picture(tmp_path / name / f"{index}.png")
    data = opened(tmp_path)
    assert data.sizes() == {"train": 14, "calibration": 2, "test": 4}
    assert data.classes == ("bus", "train")


def test_a_class_called_train_beside_others(tmp_path):
    for name in ("bus", "train"):
        picture(tmp_path / name / "1.png")
        picture(tmp_path / name / "2.png")
    assert opened(tmp_path).classes == ("bus", "train")


def test_class_list_gives_the_order(tmp_path):
    for name in ("zebra", "ant"):
        picture(tmp_path / "test" / name / "1.png")
    (tmp_path / "classes.txt").write_text("zebra\nlion\n\nant\n")
    data = opened(tmp_path, classes=tmp_path / "classes.txt")
    assert (labels(data, "test"), data.num_classes) == ([0, 2], 3)
    (tmp_path / "classes.txt").write_text("zebra\naunt\n")
    with pytest.raises(DataError, match=r"ant' is not in the class list; did you mean 'aunt'\?"):
        opened(tmp_path, classes=tmp_path / "classes.txt")


def test_classes_that_one_part_lacks(tmp_path):
    picture(tmp_path / "train" / "a" / "1.png")
    picture(tmp_path / "train" / "b" / "1.png")
    picture(tmp_path / "test" / "b" / "1.png")
    assert labels(opened(tmp_path), "test") == [1]


def test_calibration_images_need_no_classes(tmp_path):
    picture(tmp_path / "calibration" / "1.png")
    picture(tmp_path / "test" / "a" / "1.png")
    assert opened(tmp_path).calibration[0].shape == (3, 16, 16)


def test_grey_and_palette_images_become_rgb(tmp_path):
    picture(tmp_path / "test" / "a" / "1.png", mode="L")
    picture(tmp_path / "test" / "a" / "2.png", mode="RGBA")
    data = opened(tmp_path)
    assert {tuple(x.shape) for x, _ in data.test} == {(3, 16, 16)}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "holds no images; put them into one folder per class"),
        (lambda root: (root / "cat").mkdir(), "holds no images"),
        (lambda root: [(root / "test" / "cat").mkdir(parents=True)], r"test' holds no images"),
        (lambda root: picture(root / "train" / "1.png"), r"train' holds no images; put them into one folder per class"),
    ],
)
def test_empty(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(DataError, match=message):
        opened(tmp_path)


def test_missing_folder(tmp_path):
    with pytest.raises(DataError, match="absent' does not exist; check the path after imagefolder:"):
        opened(tmp_path / "absent")


def test_image_that_cannot_be_read(tmp_path):
    picture(tmp_path / "test" / "a" / "1.png")
    (tmp_path / "test" / "a" / "2.png").write_bytes(b"no image")
    data = opened(tmp_path)
    with pytest.raises(DataError, match=r"image '.*2\.png' cannot be read .*; remove it or fetch it again"):
        list(data.loader("test"))


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "is empty; write one class name a line"), ("a\nb\na\n", "names 'a' twice; each class has one line")],
)
def test_bad_class_lists(tmp_path, content, message):
    (tmp_path / "c.txt").write_text(content)
    with pytest.raises(DataError, match=message):
        read_classes(tmp_path / "c.txt")
    with pytest.raises(DataError, match="does not exist; check classes"):
        read_classes(tmp_path / "absent.txt")
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is not text; write one class name a line"):
        read_classes(tmp_path / "c.txt")


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "swin_t", "vit_h_14"])
@pytest.mark.parametrize("size", [(300, 260), (100, 170)])
def test_preprocessing_is_torchvisions(tmp_path, name, size):
    preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    with Image.open(picture(tmp_path / "1.png", size)) as image:
        torch.testing.assert_close(from_torchvision(preset).image(image), preset(image), rtol=0, atol=0)


def test_given_values_replace_a_whole_group():
    base = Preprocessing(mean=(0.1,), std=(0.2,), resize=256, crop=224)
    assert adjusted(base, crop=200) == Preprocessing(mean=(0.1,), std=(0.2,), crop=200)
    assert adjusted(base, mean=0.5, std=(0.25,)) == Preprocessing(mean=(0.5,), std=(0.25,), resize=256, crop=224)
    assert adjusted(base) == base


def test_resize_alone_gives_one_size(tmp_path):
    picture(tmp_path / "test" / "a" / "1.png", (50, 30))
    picture(tmp_path / "test" / "a" / "2.png", (30, 60))
    assert {tuple(x.shape) for x, _ in opened(tmp_path, resize=20).test} == {(3, 20, 20)}
    assert {tuple(x.shape) for x, _ in opened(tmp_path, resize=(10, 12)).test} == {(3, 10, 12)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interpolation": "bilinaer"}, r"unknown interpolation 'bilinaer'; did you mean 'bilinear'\?"),
        ({"std": (0.0,)}, "must be positive; give the standard deviation"),
        ({"mean": (0.5, 0.5), "std": (0.5, 0.5, 0.5)}, "mean has 2 values and std 3; give one per channel to both"),
    ],
)
def test_bad_preprocessing(options, message):
    with pytest.raises(DataError, match=message):
        Preprocessing(**options)


@pytest.mark.parametrize("crop", [0, (3, 0), (1, 2, 3)])
def test_bad_sizes(crop):
    with pytest.raises(DataError, match="cannot be used; give one positive number, or height and width"):
        adjusted(Preprocessing(), crop=crop)


def test_small_images_of_one_size_keep_it(tmp_path):
    for name in ("cat", "dog"):
        for index in range(6):
            picture(tmp_path / name / f"{index}.png", (32, 32))
    data = open_data(f"imagefolder:{tmp_path}")
    assert data.input_shape == (3, 32, 32)
    pixels = np.asarray(Image.open(data.train.dataset.files[data.train.indices[0]][0])) / 255
    expected = (pixels - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    assert np.allclose(data.train[0][0].permute(1, 2, 0), expected, atol=1e-5)
    assert "centre 32×32 (the images' own size); ImageNet's mean and standard deviation" in data.notes[0]
    picture(tmp_path / "dog" / "00.png", (40, 30))
    assert open_data(f"imagefolder:{tmp_path}").input_shape == (3, 224, 224)


def test_a_model_of_one_size_decides(tmp_path):
    for index in range(6):
        picture(tmp_path / "cat" / f"{index}.png")
    named = open_data(f"imagefolder:{tmp_path}", model_size=(20, 24), mean=0.5, std=0.5)
    assert named.input_shape == (3, 20, 24)
    assert named.notes == (
        f"images of {tmp_path.name}: resized to 20×24 (what the model takes) (--resize --crop --mean --std change this)",
    )
    own = open_data(f"imagefolder:{tmp_path}", model_size=(20, 20), resize=16)
    assert own.input_shape == (3, 16, 16) and "ImageNet's mean" in own.notes[0]
    weights = Preprocessing(mean=(0.5,), std=(0.5,), resize=18, crop=16, suggested=True)
    assert open_data(f"imagefolder:{tmp_path}", preprocessing=weights).notes == ()
    assert open_data(f"imagefolder:{tmp_path}", preprocessing=weights, model_size=(16, 16)).notes == ()
    assert open_data(f"imagefolder:{tmp_path}", preprocessing=weights, model_size=(12, 12)).input_shape == (3, 12, 12)
