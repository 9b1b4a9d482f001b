"""What callers hand in: whatever is unambiguous works, the rest is one line in the caller's words."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import compress
from compress.errors import CompressError, DataError, InputError, in_python, on_the_command_line
from compress.given import named_models
from compress.loading.data import in_hand, open_data

X, Y = torch.randn(40, 12, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 3)).eval()


@pytest.fixture(scope="module")
def graph(net):
    return compress.export(net, (2, 12)).model


FORMS = {
    "tensor": X,
    "array": X.numpy(),
    "pair": (X, Y),
    "mapping": {"input": X, "labels": Y},
    "data set": TensorDataset(X, Y),
    "stream": Stream(),
    "loader": DataLoader(TensorDataset(X, Y), batch_size=8),
    "list": [(X[:20], Y[:20]), (X[20:], Y[20:])],
    "generator": ((X[i : i + 8], Y[i : i + 8]) for i in range(0, 40, 8)),
    "data": in_hand({"train": (X.numpy(), Y.numpy()), "test": (X.numpy(), Y.numpy())}),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_calibration_data(graph, form):
    assert compress.quantize_static(graph, FORMS[form], target="any").done


def test_what_models_come_in(net, graph, tmp_path):
    expected = compress.evaluate(net, (X, Y)).top1
    step = compress.fuse(net, X[:2])
    path = compress.save_onnx(graph, tmp_path / "net.onnx")
    fitted = compress.fit(net, ([(X, Y)], None), {"epochs": 1, "lr": 1e-9})
    for form in (step, graph, onnx.load(path), path, fitted):
        assert compress.evaluate(form, (X, Y)).top1 == expected
    assert set(compress.benchmark([graph, step, net], X[:1], rounds=5)) == {
        graph.graph.name,
        "Sequential",
        "Sequential #2",
    }


def test_the_name_of_a_graph_is_short(graph):
    assert compress.evaluate(graph, (X, Y)).name == graph.graph.name
    assert list(named_models([graph, graph])) == [graph.graph.name, f"{graph.graph.name} #2"]


WRONG = {
    "quantize_static": lambda net, graph: compress.quantize_static(graph, "digits"),
    "quantize_static 2": lambda net, graph: compress.quantize_static(graph, 3),
    "quantize_dynamic": lambda net, graph: compress.quantize_dynamic(graph, [(X, Y)]),
    "evaluate": lambda net, graph: compress.evaluate(3, (X, Y)),
    "evaluate 2": lambda net, graph: compress.evaluate(net, None),
    "export": lambda net, graph: compress.export("resnet18", X),
    "export 2": lambda net, graph: compress.export(net, "2,12"),
    "fuse": lambda net, graph: compress.fuse(graph),
    "prune": lambda net, graph: compress.prune(graph, X),
    "fit": lambda net, graph: compress.fit(graph, ([(X, Y)], None)),
    "fit 2": lambda net, graph: compress.fit(net, ([(X, Y)], None), {"epocs": 1}),
    "benchmark": lambda net, graph: compress.benchmark([], X),
    "open_data": lambda net, graph: compress.open_data(3),
    "open_data 2": lambda net, graph: compress.open_data(np.float32(1)),
    "load": lambda net, graph: compress.load(3),
    "prepare_qat": lambda net, graph: compress.prepare_qat(graph, "digits"),
    "convert": lambda net, graph: compress.convert(net),
    "quantize": lambda net, graph: compress.quantize(net, 3, output="never"),
    "compare": lambda net, graph: compress.compare([]),
}


@pytest.mark.parametrize("call", WRONG)
def test_what_cannot_be_meant_is_one_line(net, graph, call):
    with pytest.raises(CompressError) as caught:
        WRONG[call](net, graph)
    assert "\n" not in str(caught.value) and " --" not in str(caught.value)


def test_messages_speak_the_callers_language():
    error = InputError("give --input-shape, or --data; pass --trust-pickle, choose another -o")
    assert str(error) == "give input_shape, or data; pass trust_pickle=True, choose another output"
    with on_the_command_line():
        assert "--input-shape" in str(error)
    assert in_python("1 --- 2, a-b, x--y") == "1 --- 2, a-b, x--y"


def test_jobs_take_loaders(net, tmp_path):
    loader = DataLoader(TensorDataset(X, Y), batch_size=8)
    report = compress.quantize(net, (loader, loader), output=tmp_path / "out")
    assert report.rows[0].samples == 40 and (tmp_path / "out" / "model.onnx").is_file()


def test_streams_have_parts_and_no_length():
    data = open_data(Stream())
    parts = {part: [y for _, ys in data.loader(part, batch_size=8) for y in ys.tolist()] for part in ("train", "test")}
    assert len(parts["test"]) == 8 and len(parts["train"]) == 32
    assert len(list(data.loader("calibration", batch_size=1, limit=5))) == 5
    assert data.sizes() == {} and compress.fit(nn.Linear(12, 3), data, compress.TrainOptions(epochs=1)).history


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("suffixes", [("",), ("_train", "_test")])
def test_arrays_with_names_are_inputs_by_name(tmp_path, folder, suffixes):
    arrays = {}
    for suffix in suffixes:
        arrays |= {f"input_ids{suffix}": np.arange(40).reshape(20, 2), f"attention_mask{suffix}": np.ones((20, 2), int)}
        arrays[f"y{suffix}"] = np.arange(20) % 3
    if folder:
        for name, values in arrays.items():
            np.save(tmp_path / f"{name}.npy", values)
    else:
        np.savez(tmp_path / "d.npz", **arrays)
    data = open_data(tmp_path if folder else tmp_path / "d.npz")
    batch = next(iter(data.loader("test", batch_size=4)))
    assert set(batch) == {"input_ids", "attention_mask", "labels"} and batch["input_ids"].dtype == torch.int64
    assert data.num_classes == 3


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"a": np.zeros((3, 2)), "b": np.zeros((4, 2))}, "differ in samples"),
        ({"a": np.float32(1)}, "single value"),
        ({"y": np.zeros(3)}, "no input"),
        ({"a": np.array(["x", "y"])}, "are numbers"),
    ],
)
def test_named_arrays_that_do_not_fit(tmp_path, arrays, words):
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(DataError, match=words):
        open_data(tmp_path / "d.npz")


def test_a_flat_folder_of_images_calibrates(tmp_path):
    from PIL import Image

    for index in range(4):
        Image.new("RGB", (8, 8), (60 * index, 9, 9)).save(tmp_path / f"{index}.png")
    data = open_data(f"imagefolder:{tmp_path}")
    assert data.sizes() == {"calibration": 4} and data.test is None and data.num_classes is None
