"""Programs from anyone: none runs code, none writes a file, and those that `torch.export.save` writes are read."""

import contextlib
import io
import json
import os
import pickle
import zipfile

import pytest
import torch
from torch import nn

from compress.errors import ModelError
from compress.loading.models import open_model
from compress.loading.untrusted import _check_expression, _Refused


class Nested(nn.Module):
    """Sizes that depend on the batch, a dictionary of outputs, a recurrent layer, strings as options."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")
        self.recurrent = nn.LSTM(4, 4, batch_first=True)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.register_buffer("table", torch.eye(4), persistent=False)

    def forward(self, x):
        x = nn.functional.gelu(self.conv(x), approximate="tanh").flatten(2).transpose(1, 2)
        x = x.reshape(2 * x.shape[0], x.shape[1] // 2, 4)
        x, _ = self.recurrent(x)
        x, _ = self.attention(x, x, x, need_weights=False)
        return {"mean": x.mean(1) @ self.table, "all": [x]}


@pytest.fixture(scope="module")
def program():
    return torch.export.export(
        Nested().eval(), (torch.randn(2, 3, 4, 4),), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},)
    )


@pytest.fixture
def saved(program, tmp_path):
    torch.export.save(program, tmp_path / "model.pt2")
    return tmp_path / "model.pt2"


def changed(path, change):
    """Write the archive again, each entry as `change(name, content)` returns it."""
    entries = []
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            entries.append((name, change(name, archive.read(name))))
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries:
            archive.writestr(name, content)


class Bomb:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def bomb(mark):
    content = io.BytesIO()
    torch.save(((Bomb(mark),), {}), content)
    return content.getvalue()


def refused(path):
    with pytest.raises(ModelError, match="trust_pickle=True") as caught:
        open_model(path)
    assert "\n" not in str(caught.value)


def test_own_programs_are_read_and_compute_the_same(saved, program):
    x = torch.randn(5, 3, 4, 4)
    for name, value in open_model(saved).model(x).items():
        wanted = program.module()(x)[name]
        assert torch.equal(value[0] if name == "all" else value, wanted[0] if name == "all" else wanted)


def test_pickled_sample_inputs_are_not_unpickled(saved, tmp_path):
    changed(saved, lambda name, content: bomb(tmp_path / "mark") if "sample_inputs" in name else content)
    refused(saved)
    assert not (tmp_path / "mark").exists()
    with contextlib.suppress(ModelError):
        open_model(saved, trust_pickle=True)  # the bomb is real: with the flag it goes off
    assert (tmp_path / "mark").is_dir()


def test_pickled_weights_are_not_unpickled(saved, tmp_path):
    def weights(name, content):
        if name.endswith("weights_config.json"):
            config = json.loads(content)
            next(iter(config["config"].values()))["use_pickle"] = True
            return json.dumps(config)
        return bomb(tmp_path / "mark") if name.endswith("weights/weight_0") else content

    changed(saved, weights)
    refused(saved)
    assert not (tmp_path / "mark").exists()


def test_custom_objects_are_not_unpickled(saved, tmp_path):
    def constants(name, content):
        if name.endswith("constants_config.json"):
            entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": False, "tensor_meta": None}
            return json.dumps({"config": {"x": entry}})
        return content

    changed(saved, constants)
    with zipfile.ZipFile(saved, "a") as archive:
        room = archive.namelist()[0].split("/")[0]
        archive.writestr(f"{room}/data/constants/opaque_obj_0", pickle.dumps(Bomb(tmp_path / "mark")))
    refused(saved)
    assert not (tmp_path / "mark").exists()


def _set(program, *keys_and_value):
    *keys, value = keys_and_value
    for key in keys[:-1]:
        program = program[key]
    program[keys[-1]] = value


TREE = '[1, {"type": "%s", "context": %s, "children_spec": []}]'
DEFAULT_FACTORY = {"default_factory_module": "antigravity", "default_factory_name": "fly", "dict_context": []}
GRAPH, CALL = ("graph_module", "graph"), ("graph_module", "module_call_graph", 0, "signature")
ATTACKS = {
    "os.system": (*GRAPH, "nodes", 0, "target", "torch.serialization.os.system"),
    "load_library": (*GRAPH, "nodes", 0, "target", "torch.ops.load_library"),
    "from_file": (*GRAPH, "nodes", 0, "target", "torch.ops.aten.from_file.default"),
    "extension": (*GRAPH, "nodes", 0, "target", "#x:y"),
    "eval": (*GRAPH, "sym_int_values", "s", {"as_expr": {"expr_str": "__import__('os').getcwd()", "hint": None}}),
    "node name": (*GRAPH, "nodes", 0, "name", "x = print()\n y"),
    "input name": (*GRAPH, "inputs", 0, "as_tensor", "name", 'x"); print("'),
    "argument name": (*GRAPH, "nodes", 0, "inputs", 0, "name", "self=print(), x"),
    "weight name": ("graph_module", "signature", "input_specs", 0, "parameter", "parameter_name", 'a")or print("'),
    "default factory": (*CALL, "in_spec", TREE % ("collections.defaultdict", json.dumps(DEFAULT_FACTORY))),
    "enum": (*CALL, "out_spec", TREE % ("builtins.dict", json.dumps('{"__enum__": 1, "fqn": "antigravity:x"}'))),
    "range": ("range_constraints", "x.y()", {"min_val": 1, "max_val": 2}),
    "unknown text": ("graph_module", "surprise", "text"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_programs_that_would_run_code_are_refused(saved, attack):
    def program(name, content):
        if "/models/" not in name:
            return content
        content = json.loads(content)
        _set(content, *ATTACKS[attack])
        return json.dumps(content)

    changed(saved, program)
    refused(saved)


def test_guards_are_not_executed(saved, tmp_path):
    def program(name, content):
        if "/models/" not in name:
            return content
        code = [f"__import__('os').mkdir({str(tmp_path / 'mark')!r}) is None"]
        return json.dumps({**json.loads(content), "guards_code": code})

    changed(saved, program)
    open_model(saved).model(torch.randn(2, 3, 4, 4))
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("entry", ["data/aotinductor/model/x.so", "data/weights/model.pt"])
def test_native_code_and_old_pickles_are_refused(saved, entry):
    with zipfile.ZipFile(saved, "a") as archive:
        archive.writestr(f"{archive.namelist()[0].split('/')[0]}/{entry}", b"x")
    refused(saved)


@pytest.mark.parametrize(
    "text", ["Symbol('s85', positive=True, integer=True)", "2*s0 + 1", "Max(1, s3 // 2)", "Pow(Integer(2), Integer(3))"]
)
def test_sizes_that_exports_write_are_taken(text):
    _check_expression(text)


@pytest.mark.parametrize(
    "text",
    ["().__class__", "open('x')", "Symbol('x.y()')", "9**9**9", "[1]", "lambda: 0", "Symbol(print())", "s0()", "'a'*9"],
)
def test_sizes_that_are_code_are_refused(text):
    with pytest.raises(_Refused):
        _check_expression(text)


def test_torchscript_that_writes_files_is_refused(tmp_path):
    class Writer(nn.Module):
        def forward(self, x):
            torch.save(x, "stolen")
            return x

    path = tmp_path / "writer.torchscript"
    torch.jit.script(Writer()).save(str(path), _extra_files={"compress.json": '{"engine": "x86"}'})
    refused(path)
