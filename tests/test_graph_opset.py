"""Old opsets are raised before quantization, inside subgraphs too, with the same outputs; what cannot be is said in one line."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import compress
from compress.errors import UnsupportedOperatorError
from compress.graph.opset import ensure_opset, opset_of
from compress.onnx_files import read_onnx, save_onnx
from compress.runtimes.onnxruntime import Session

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def two_convolutions(opset, *, ir_version=7, listed=False):
    """Conv → Relu → Upsample or Squeeze/Unsqueeze (whose form changed at 13) → Conv."""
    weights = np.random.default_rng(0)
    tensors = [
        numpy_helper.from_array((weights.normal(size=shape) * 0.2).astype(np.float32), name)
        for name, shape in (("w1", (8, 3, 3, 3)), ("w2", (4, 8, 1, 1)))
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Unsqueeze", ["r"], ["u"], axes=[0]),
        helper.make_node("Squeeze", ["u"], ["s"], axes=[0]),
        helper.make_node("Conv", ["s", "w2"], ["y"]),
    ]
    inputs = [value("x", ["N", 3, 8, 8])]
    inputs += [value(tensor.name, list(tensor.dims)) for tensor in tensors] if listed else []
    graph = helper.make_graph(nodes, "g", inputs, [value("y", ["N", 4, 8, 8])], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


@pytest.mark.parametrize(("opset", "ir_version", "listed"), [(8, 3, True), (11, 6, False), (12, 7, True)])
def test_old_files_become_int8_files_that_load(opset, ir_version, listed, tmp_path):
    path = tmp_path / "old.onnx"
    onnx.save(two_convolutions(opset, ir_version=ir_version, listed=listed), path)
    expected = Session(path).run(X)[0]
    step = compress.quantize_static(path, [X], threads=1)
    assert opset_of(step.model) == 17
    note = next(note for note in step.notes if "opset" in note)
    assert note.startswith(f"the file's ONNX opset {opset} was raised to 17") and note.endswith("before and after")
    assert any("2 weights that the file lists" in note for note in step.notes) == listed
    save_onnx(step.model, tmp_path / "int8.onnx")
    got = Session(tmp_path / "int8.onnx").run(X)[0]
    assert 0 < np.abs(got - expected).max() < 0.05 * np.abs(expected).max()
    assert sum(change.action.startswith("quantized") or "Conv" in str(change.values) for change in step.done) >= 2


def test_training_and_the_clock_raise_as_well(tmp_path):
    from compress.quantization.tuned import quantize_tuned

    path = save_onnx(ir.from_proto(two_convolutions(11)), tmp_path / "old.onnx")
    assert any("was raised to 17" in note for note in compress.prepare_qat(path, [X]).notes)
    tuned = quantize_tuned(path, [X], threads=1, budget_s=1)
    assert sum("was raised to 17" in note for note in tuned.notes) == 1
    Session(tuned.model).run(X)


def test_branches_are_raised_too():
    def branch(name):
        nodes = [
            helper.make_node("Squeeze", ["x"], [f"{name}s"], axes=[0]),
            helper.make_node("Unsqueeze", [f"{name}s"], [name], axes=[0]),
        ]
        return helper.make_graph(nodes, name, [], [value(name, None)])

    choice = helper.make_node("If", ["c"], ["y"], then_branch=branch("a"), else_branch=branch("b"))
    inputs = [value("c", [], TensorProto.BOOL), value("x", [1, 3])]
    model = helper.make_model(
        helper.make_graph([choice], "g", inputs, [value("y", None)]),
        opset_imports=[helper.make_opsetid("", 11)],
        ir_version=6,
    )
    graph = ir.from_proto(model)
    feeds = (np.array(True), np.ones((1, 3), np.float32))
    (note,) = ensure_opset(graph, 13, purpose="a pair", inputs=feeds)
    assert "11 was raised to 13, because a pair needs 13; ONNX Runtime gives the same before" in note
    np.testing.assert_array_equal(Session(graph).run(*feeds)[0], feeds[1])


def test_new_files_are_left_alone():
    graph = ir.from_proto(two_convolutions(11))
    graph.opset_imports[""] = 13
    assert ensure_opset(graph, 13, purpose="a pair") == () and opset_of(graph) == 13


@pytest.mark.parametrize("fails", [lambda *_, **__: 1 / 0, lambda *_, **__: None])
def test_what_cannot_be_raised_is_refused_before_the_work(fails, monkeypatch, tmp_path):
    path = save_onnx(ir.from_proto(two_convolutions(11)), tmp_path / "old.onnx")
    monkeypatch.setattr("onnxscript.version_converter.convert_version", fails)
    with pytest.raises(UnsupportedOperatorError, match=r"opset is 11, .* needs 13, and it cannot be raised: .*export"):
        compress.quantize_static(path, [X])


def test_another_result_is_refused(monkeypatch):
    def wrong(graph, version, fallback):
        graph.opset_imports[""] = version
        nodes = {node.op_type: node for node in graph.graph}
        for kind in ("Unsqueeze", "Squeeze"):
            nodes[kind].outputs[0].replace_all_uses_with(nodes[kind].inputs[0])
            graph.graph.remove(nodes[kind], safe=True)
        nodes["Relu"].outputs[0].replace_all_uses_with(nodes["Relu"].inputs[0])

    monkeypatch.setattr("onnxscript.version_converter.convert_version", wrong)
    graph = ir.from_proto(two_convolutions(11))
    with pytest.raises(UnsupportedOperatorError, match="differ by up to"):
        ensure_opset(graph, 13, purpose="a pair", inputs=[X])
    assert opset_of(graph) == 11


def test_dynamic_quantization_of_opset_7(tmp_path):
    weight = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [value("x", ["N", 64])],
        [value("y", ["N", 64])],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 7)], ir_version=4), tmp_path / "old.onnx")
    step = compress.quantize_dynamic(tmp_path / "old.onnx")
    assert any("7 was raised to 13" in note for note in step.notes)
    x = torch.randn(2, 64)
    got, expected = Session(step.model).run(x)[0], read_onnx(tmp_path / "old.onnx")
    np.testing.assert_allclose(got, Session(expected).run(x)[0], atol=0.5)
