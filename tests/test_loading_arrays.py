"""What an `.npz` file holds is told from names, types, shapes; what is wrong is named."""

import numpy as np
import pytest
import torch

from compress.errors import DataError
from compress.loading.arrays import as_dataset
from compress.loading.data import open_data
from compress.loading.preprocessing import Preprocessing

RNG = np.random.default_rng(0)


def npz(tmp_path, **arrays):
    np.savez(tmp_path / "d.npz", **arrays)
    return str(tmp_path / "d.npz")


def pixels(*shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def test_nhwc_images(tmp_path):
    x = pixels(6, 5, 4, 3)
    data = open_data(npz(tmp_path, x_test=x, y_test=np.arange(6)), mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))
    expected = (x.transpose(0, 3, 1, 2) / 255 - np.array([0.5, 0.4, 0.3]).reshape(3, 1, 1)) / np.array(
        [0.1, 0.2, 0.3]
    ).reshape(3, 1, 1)
    got = torch.stack([data.test[index][0] for index in range(6)])
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)
    assert (data.input_shape, data.input_dtype, data.num_classes) == ((3, 5, 4), torch.float32, 6)


def test_grey_images_are_scaled(tmp_path):
    x = pixels(6, 5, 4)
    data = open_data(npz(tmp_path, x_test=x))
    torch.testing.assert_close(data.test[2], torch.from_numpy(x[2:3]).float() / 255)


def test_channels_first_where_only_that_is_possible(tmp_path):
    x = pixels(6, 3, 5, 7)
    data = open_data(npz(tmp_path, x_test=x))
    torch.testing.assert_close(data.test[1], torch.from_numpy(x[1]).float() / 255)


def test_images_of_no_known_layout(tmp_path):
    with pytest.raises(DataError, match=r"d\.npz:x_test has shape \(2, 5, 6, 7\); images are \(N, H, W\)"):
        open_data(npz(tmp_path, x_test=pixels(2, 5, 6, 7)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_are_taken_as_they_stand(tmp_path, dtype):
    x = RNG.normal(size=(6, 3)).astype(dtype)
    data = open_data(npz(tmp_path, x_test=x), mean=0.5, std=0.5)
    torch.testing.assert_close(data.test[3], torch.from_numpy(x[3].astype(np.float32)), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64])
def test_integers_are_token_ids(tmp_path, dtype):
    data = open_data(npz(tmp_path, x_test=np.arange(12, dtype=dtype).reshape(4, 3)))
    assert data.test[1].tolist() == [3, 4, 5] and data.input_dtype == torch.int64


def test_names_of_the_parts(tmp_path):
    x = np.zeros((8, 2), np.float32)
    assert open_data(npz(tmp_path, x_train=x, x_calibration=x, x_test=x)).sizes() == {
        "train": 8,
        "calibration": 8,
        "test": 8,
    }
    assert open_data(npz(tmp_path, x_dev=x)).sizes() == {"test": 8}
    assert open_data(npz(tmp_path, x_val=x, x_train=x)).sizes() == {"train": 7, "calibration": 1, "test": 8}
    assert open_data(npz(tmp_path, x=x)).sizes() == {"train": 5, "calibration": 1, "test": 2}
    assert open_data(npz(tmp_path, x=x, x_test=x)).sizes() == {"test": 8}


def test_the_test_part_wins_over_a_validation_part(tmp_path):
    data = open_data(npz(tmp_path, x_test=np.ones((3, 1), np.float32), x_val=np.zeros((3, 1), np.float32)))
    assert float(data.test[0]) == 1


def test_targets(tmp_path):
    x = np.zeros((4, 2), np.float32)
    assert open_data(npz(tmp_path, x_test=x, y_test=np.array([[1], [2], [0], [1]], np.uint8))).test[1][1] == 2
    values = open_data(npz(tmp_path, x_test=x, y_test=np.array([0.5, 1, 2, 3])))
    assert (values.num_classes, values.test[0][1].dtype) == (None, torch.float32)
    masks = open_data(npz(tmp_path, x_test=x, y_test=np.ones((4, 3, 3), np.uint8)))
    assert (masks.num_classes, masks.test[0][1].shape) == (None, (3, 3))


def test_own_preprocessing_function(tmp_path):
    def halves(image):
        return torch.full((1,), image.size[0] / 2)

    data = open_data(npz(tmp_path, x_test=pixels(4, 5, 6, 3), y_test=np.arange(4)), preprocessing=halves)
    assert data.test[0][0].tolist() == [3.0]
    with pytest.raises(
        DataError, match="a preprocessing function replaces resize, crop, mean and std; leave those out"
    ):
        open_data(npz(tmp_path, x_test=pixels(4, 5, 6, 3)), preprocessing=halves, mean=0.5)
    with pytest.raises(DataError, match="the preprocessing function returned a int; return a tensor"):
        open_data(npz(tmp_path, x_test=pixels(4, 5, 6, 3)), preprocessing=lambda image: 3)


def test_sizes_are_kept_unless_asked_for(tmp_path):
    path = npz(tmp_path, x_test=pixels(4, 32, 32, 3))
    suggested = Preprocessing(resize=48, crop=40, suggested=True)
    assert open_data(path, preprocessing=suggested).input_shape == (3, 32, 32)
    assert open_data(path, preprocessing=suggested, crop=24).input_shape == (3, 24, 24)
    assert open_data(path, preprocessing=Preprocessing(resize=48, crop=40)).input_shape == (3, 40, 40)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["x_calibration", "y_test"])
def test_not_finite(tmp_path, value, name):
    arrays = {"x_calibration": np.zeros((9, 2)), "x_test": np.zeros((9, 2)), "y_test": np.zeros(9)}
    arrays[name].reshape(9, -1)[7, 0] = value
    with pytest.raises(DataError, match=rf"d\.npz:{name} holds NaN or infinite values, first in sample 7; clean it"):
        open_data(npz(tmp_path, **arrays))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y_test": np.zeros(3)}, "holds targets and no input for its part .test.; add x"),
        ({"x_trian": np.zeros((3, 1))}, r"holds no x, x_train, .*; did you mean 'x_trian'\?"),
        ({"x_test": np.zeros((3, 1)), "y_test": np.zeros(4)}, "has 3 samples and y_test has 4; they must match"),
        ({"x_test": np.zeros((0, 3))}, "'d' holds no samples in its part 'test'"),
        ({"x_test": np.array(3.0)}, "is a single value; the first dimension must be the samples"),
        ({"x_test": np.zeros((3, 1)), "y_test": np.array([0, -1, 1])}, "label -1 is out of range; labels count from 0"),
        (
            {"x_test": np.array(["a", "b"])},
            "has type <U1; use uint8 for images, float32 for features, integers for token ids",
        ),
        ({"x_test": np.zeros((2, 1)), "y_test": np.array(["a", "b"])}, "y_test has type <U1; use integers for classes"),
        ({"x_test": np.array([{}, {}])}, "holds Python objects, not plain arrays"),
    ],
)
def test_bad_files(tmp_path, arrays, message):
    with pytest.raises(DataError, match=message):
        open_data(npz(tmp_path, **arrays))


def test_labels_beyond_the_class_list(tmp_path):
    path = npz(tmp_path, x_test=np.zeros((3, 1)), y_test=np.array([0, 3, 1]))
    with pytest.raises(DataError, match=r"d\.npz:y_test: label 3 is out of range for 3 classes \(0 to 2\)"):
        open_data(path, classes=["a", "b", "c"])
    assert open_data(path, classes=["a", "b", "c", "d"]).num_classes == 4


@pytest.mark.parametrize("content", [b"", b"no arrays here", b"PK\x03\x04 and then nothing"])
def test_not_npz(tmp_path, content):
    (tmp_path / "odd.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"odd\.npz' is not an \.npz file, or is truncated"):
        open_data(str(tmp_path / "odd.npz"))


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"absent\.npz' does not exist; check the path"):
        open_data(str(tmp_path / "absent.npz"))


def test_mean_of_another_number_of_channels(tmp_path):
    with pytest.raises(DataError, match="mean has 4 values for images of 3 channels; give one per channel"):
        open_data(npz(tmp_path, x_test=pixels(2, 4, 4, 3)), mean=(0, 0, 0, 0))


def test_pixels_are_held_once_and_handed_on_channels_first():
    """A copy with the channels first doubled the memory of a large calibration file."""
    x = np.arange(4 * 5 * 6 * 3, dtype=np.uint8).reshape(4, 5, 6, 3)
    data = as_dataset(x, None, "x", Preprocessing(mean=(0.0,) * 3, std=(1.0,) * 3))
    assert np.shares_memory(data.x.numpy(), x)
    assert data[1].is_contiguous()
    np.testing.assert_allclose(data[1].numpy(), x[1].transpose(2, 0, 1) / np.float32(255), rtol=1e-6)
