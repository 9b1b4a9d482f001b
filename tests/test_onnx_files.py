"""ONNX files are read with clear errors, written whole or not at all."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from compress.errors import ModelError, OutputError, UnsupportedOperatorError
from compress.onnx_files import give_back, read_onnx, save_onnx


def linear_proto(opset=18):
    weight = np.arange(12, dtype=np.float32).reshape(4, 3)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


@pytest.fixture
def linear(tmp_path):
    path = tmp_path / "linear.onnx"
    onnx.save(linear_proto(), path)
    return path


def outputs(path):
    x = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
    return ReferenceEvaluator(onnx.load(path)).run(None, {"x": x})[0]


@pytest.mark.parametrize("flat", [True, False])
def test_sparse_weights_are_read_dense(tmp_path, flat):
    proto = linear_proto()
    weight = numpy_helper.to_array(proto.graph.initializer.pop())
    places = np.flatnonzero(weight % 2) if flat else np.argwhere(weight % 2)
    values = numpy_helper.from_array(weight[weight % 2 > 0], "w")
    indices = numpy_helper.from_array(places.astype(np.int64), "w_indices")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, list(weight.shape)))
    onnx.save(proto, tmp_path / "sparse.onnx")
    (value,) = read_onnx(tmp_path / "sparse.onnx").graph.initializers.values()
    np.testing.assert_array_equal(value.const_value.numpy(), weight * (weight % 2))
    saved = save_onnx(read_onnx(tmp_path / "sparse.onnx"), tmp_path / "dense.onnx")
    x = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_allclose(outputs(saved), x @ (weight * (weight % 2)), rtol=1e-6)


def test_round_trip(linear, tmp_path):
    saved = save_onnx(read_onnx(linear), tmp_path / "deep" / "copy.onnx")
    np.testing.assert_array_equal(outputs(saved), outputs(linear))
    assert [item.name for item in saved.parent.iterdir()] == ["copy.onnx"]


def test_large_models_use_external_data(linear, tmp_path):
    graph = read_onnx(linear)
    graph.graph.initializers["w"].const_value = ir.tensor(np.ones((4, 300), np.float32), name="w")
    saved = save_onnx(graph, tmp_path / "large.onnx", external_above_bytes=1000)
    assert (tmp_path / "large.onnx.data").stat().st_size == 4 * 300 * 4
    assert not isinstance(graph.graph.initializers["w"].const_value, ir.ExternalTensor), (
        "the caller's graph was changed"
    )
    assert outputs(saved).shape == (2, 300)

    again = read_onnx(saved)
    embedded = save_onnx(again, tmp_path / "other" / "embedded.onnx")
    assert [item.name for item in embedded.parent.iterdir()] == ["embedded.onnx"]
    assert isinstance(again.graph.initializers["w"].const_value, ir.ExternalTensor)
    np.testing.assert_array_equal(outputs(embedded), outputs(saved))


def test_saving_over_the_file_that_is_mapped(linear, tmp_path):
    graph = read_onnx(linear)
    graph.graph.initializers["w"].const_value = ir.tensor(np.ones((4, 300), np.float32), name="w")
    saved = save_onnx(graph, tmp_path / "large.onnx", external_above_bytes=1000)
    before = outputs(saved)
    save_onnx(read_onnx(saved), saved, external_above_bytes=1000)
    np.testing.assert_array_equal(outputs(saved), before)


def test_failure_leaves_the_old_file(linear, tmp_path, monkeypatch):
    before = linear.read_bytes()
    graph = read_onnx(linear)

    def broken(*args, **kwargs):
        raise ValueError("disk on fire")

    monkeypatch.setattr(ir, "save", broken)
    with pytest.raises(ValueError, match="disk on fire"):
        save_onnx(graph, linear)
    assert linear.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["linear.onnx"]


@pytest.mark.parametrize("keep", [0, 1, 40, 0.5, 0.99])
def test_truncated(linear, keep):
    content = linear.read_bytes()
    linear.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    with pytest.raises(
        ModelError, match=r"linear\.onnx' is truncated or is not an ONNX file; fetch or export it again"
    ):
        read_onnx(linear)


def test_not_onnx(tmp_path):
    path = tmp_path / "notes.onnx"
    path.write_text("these are notes")
    with pytest.raises(ModelError, match=r"is truncated or is not an ONNX file"):
        read_onnx(path)


def test_no_such_file(tmp_path):
    with pytest.raises(ModelError, match=r"absent\.onnx' does not exist"):
        read_onnx(tmp_path / "absent.onnx")


@pytest.mark.parametrize(("opset", "advice"), [(99, "upgrade onnx"), (5, "export it again")])
def test_opset_out_of_reach(tmp_path, opset, advice):
    path = tmp_path / "odd.onnx"
    onnx.save(linear_proto(opset), path)
    with pytest.raises(
        UnsupportedOperatorError, match=rf"uses ONNX opset {opset}; opsets 7 to \d+ can be taken: {advice}"
    ):
        read_onnx(path)


def test_external_data_missing_or_truncated(linear, tmp_path):
    graph = read_onnx(linear)
    graph.graph.initializers["w"].const_value = ir.tensor(np.ones((4, 300), np.float32), name="w")
    saved = save_onnx(graph, tmp_path / "large.onnx", external_above_bytes=1000)
    data = tmp_path / "large.onnx.data"
    content = data.read_bytes()
    data.write_bytes(content[:-1])
    with pytest.raises(ModelError, match=r"the weights of 'large\.onnx', is truncated"):
        read_onnx(saved)
    data.unlink()
    with pytest.raises(ModelError, match=r"keeps its weights in 'large\.onnx\.data', which is not beside it"):
        read_onnx(saved)


def test_unwritable_folder(linear, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        save_onnx(read_onnx(linear), tmp_path / "file" / "model.onnx")


def test_attribute_without_type_is_refused(tmp_path):
    proto = linear_proto()
    proto.graph.node[0].attribute.append(onnx.AttributeProto(name="beta", f=1.0))
    onnx.save(proto, tmp_path / "untyped.onnx")
    with pytest.raises(ModelError, match=r"attribute 'beta' .* has no type"):
        read_onnx(tmp_path / "untyped.onnx")


def test_pages_given_back_are_read_again(linear, tmp_path):
    saved = save_onnx(read_onnx(linear), tmp_path / "large.onnx", external_above_bytes=0)
    proto = onnx.load(saved, load_external_data=True)
    onnx.save(proto, saved, save_as_external_data=True, location="large.onnx.data", size_threshold=0)
    (value,) = read_onnx(saved).graph.initializers.values()
    assert isinstance(value.const_value, ir.ExternalTensor)
    before = value.const_value.numpy()
    give_back(value.const_value)  # an array in hand stays good
    np.testing.assert_array_equal(before, np.arange(12, dtype=np.float32).reshape(4, 3))
    assert value.const_value.numpy() is before
    give_back(None)
