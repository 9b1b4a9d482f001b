"""Damaged and hostile inputs: one line, exit code 2, no traceback, nothing read outside the folder."""

import io
import os
import pickle
import zipfile

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from cli.main import main
from compress.errors import InputError, ModelError
from compress.onnx_files import read_onnx
from compress.pipeline.inputs import Settings

EYE = np.eye(4, dtype=np.float32).tobytes()


def tensor(name="w", dims=(4, 4), raw=EYE, kind=TensorProto.FLOAT):
    made = TensorProto(name=name, data_type=kind, raw_data=raw)
    made.dims.extend(dims)
    return made


def external(location, offset=0, length=64):
    made = tensor()
    made.ClearField("raw_data")
    made.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        made.external_data.add(key=key, value=str(value))
    return made


def sparse(places, dims=(4, 4)):
    values = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
    return helper.make_sparse_tensor(values, helper.make_tensor("i", TensorProto.INT64, [2], places), dims)


def onnx_file(path, weights=(), sparse_weights=(), nodes=None, shape=("N", 4)):
    nodes = nodes or [helper.make_node("MatMul", ["x", "w"], ["y"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])
    graph = helper.make_graph(nodes, "g", [x], [y], list(weights), sparse_initializer=list(sparse_weights))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())


def relu(first, second):
    return helper.make_node("Relu", [first], [second])


ONNX = {
    "outside": (dict(weights=[external("../secret.bin")]), "outside its own folder"),
    "link": (dict(weights=[external("link.bin")]), "outside its own folder"),
    "long": (dict(weights=[external("data.bin", 0, 10**6)]), "truncated"),
    "far": (dict(weights=[external("data.bin", 2**62)]), "truncated"),
    "zero byte": (dict(weights=[external("a\0b")]), "no name of a file"),
    "sparse": (dict(sparse_weights=[sparse([0, 99])]), "outside its shape"),
    "sparse negative": (dict(sparse_weights=[sparse([-1, 3])]), "outside its shape"),
    "sparse huge": (dict(sparse_weights=[sparse([0, 1], (2**20, 2**20))]), "too large to be unfolded"),
    "huge": (dict(weights=[tensor(dims=(2**31, 2**31), raw=b"1234")]), "holds 4 bytes"),
    "negative": (dict(weights=[tensor(dims=(-4, 4))]), "negative size"),
    "short": (dict(weights=[tensor(raw=bytes(10))]), "holds 10 bytes"),
    "type": (dict(weights=[tensor(kind=99)]), "bad_type|does not hold a valid ONNX graph|99"),
    "cycle": (dict(nodes=[helper.make_node("Add", ["x", "b"], ["y"]), relu("y", "b")]), "acyclic"),
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (tmp_path / "secret.bin").write_bytes(bytes(64))
    (folder / "data.bin").write_bytes(bytes(64))
    (folder / "link.bin").symlink_to("../secret.bin")
    (folder / "ok.py").write_text(
        "import torch\ndef build():\n    return torch.nn.Linear(4, 4)\ndef leaves():\n    import sys; sys.exit(7)\n"
    )
    onnx_file(folder / "good.onnx", [tensor()])
    return folder


@pytest.fixture
def refused(place, capsys):
    def run(*arguments, says):
        before = sorted(place.iterdir())
        with pytest.raises(SystemExit) as stop:
            main([*arguments, "--quiet"])
        said = capsys.readouterr().err
        assert stop.value.code == 2, said
        assert said.count("\n") == 1 and says in said and "bug in compress" not in said, said
        assert sorted(item for item in place.iterdir() if item.name != "__pycache__") == before

    return run


@pytest.mark.parametrize("kind", ONNX)
def test_onnx_files(place, refused, kind):
    parts, says = ONNX[kind]
    onnx_file(place / "bad.onnx", **parts)
    if "|" in says:
        with pytest.raises(ModelError, match=says):
            read_onnx(place / "bad.onnx")
        says = "bad.onnx"
    refused("quantize", "bad.onnx", "--method", "dynamic", "--input-shape", "2,4", "-o", "out", says=says)


def test_external_data_of_constants_is_checked_too(place):
    onnx_file(place / "bad.onnx", [tensor()], nodes=[
        helper.make_node("Constant", [], ["c"], value=external("../secret.bin")),
        helper.make_node("MatMul", ["x", "c"], ["y"]),
    ])  # fmt: skip
    with pytest.raises(ModelError, match="outside its own folder"):
        read_onnx(place / "bad.onnx")


def test_names_that_are_no_text_in_a_graph(place):
    onnx_file(place / "bad.onnx", [tensor()], nodes=[helper.make_node("MatMul", ["x", "w"], ["y"], name="abcdefgh")])
    content = (place / "bad.onnx").read_bytes()
    (place / "bad.onnx").write_bytes(content.replace(b"abcdefgh", b"abc\xff\xfefgh"))
    with pytest.raises(ModelError, match="is no text"):
        read_onnx(place / "bad.onnx")


@pytest.mark.parametrize("where", ["producer_version", "domain", "doc_string", "metadata", "size"])
def test_texts_that_are_no_text_around_a_graph(place, refused, where):
    """Who made the file, its own domain, a size's name: such a file was read, and failed when its copy was written."""
    onnx_file(place / "bad.onnx", [tensor()], shape=("abcdefgh" if where == "size" else "N", 4))
    model = onnx.load(place / "bad.onnx")
    if where == "metadata":
        model.metadata_props.add(key="k", value="abcdefgh")
    elif where != "size":
        setattr(model, where, "abcdefgh")
    (place / "bad.onnx").write_bytes(model.SerializeToString().replace(b"abcdefgh", b"abc\xff\xfefgh"))
    refused("quantize", "bad.onnx", "--method", "dynamic", "--input-shape", "2,4", "-o", "out", says="is no text")


def test_every_byte_of_a_checkpoint_may_be_wrong(place, refused):
    torch.save(torch.nn.Linear(4, 4).state_dict(), "good.pt")
    whole = (place / "good.pt").read_bytes()
    from compress.errors import WeightsError
    from compress.loading.state_dicts import read_state_dict

    for at in range(0, len(whole), 37):
        (place / "bad.pt").write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            read_state_dict("bad.pt")
        except WeightsError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (torch.sparse_coo_tensor([[0], [1]], [1.0], (4, 4)), "sparse"),
        (torch.zeros(4, 4, dtype=torch.complex64), "complex"),
        (torch.empty(4, 4, device="meta"), "without values"),
    ],
)
def test_weights_of_other_kinds(place, refused, value, says):
    torch.save({"weight": value, "bias": torch.zeros(4)}, "bad.pt")
    arguments = ("export", "ok.py:build", "--weights", "bad.pt", "--input-shape", "2,4", "-o", "o.onnx")
    refused(*arguments, says=says)


def test_damaged_data(place, refused):
    np.savez("good.npz", x=np.zeros((8, 4), np.float32), y=np.zeros(8, np.int64))
    for key in ("x", "y"):
        arrays = {"x": np.zeros((8, 4), np.float32), "y": np.zeros(8, np.int64)}
        np.savez("bad.npz", **{**arrays, key: np.float32(1)})
        refused("evaluate", "good.onnx", "--data", "bad.npz", says="a single value")
    np.savez("bad.npz", x=np.array([{}, []], dtype=object))
    refused("evaluate", "good.onnx", "--data", "bad.npz", says="Python objects")
    with zipfile.ZipFile("bad.npz", "w") as archive:
        archive.writestr("x.npy", b"no array")
    refused("evaluate", "good.onnx", "--data", "bad.npz", says="not an .npz file")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2**44, 4)})
    with zipfile.ZipFile("bad.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue())
    refused("evaluate", "good.onnx", "--data", "bad.npz", says="bad.npz")
    (place / "bad.npz").write_bytes(pickle.dumps([1]))
    refused("evaluate", "good.onnx", "--data", "bad.npz", says="not an .npz file")


RECIPE = "[model]\nspec = 'ok.py:build'\n[data]\nspec = 'd.npz'\n[quantize]\n"
RECIPES = {
    "[model]\nspec = 0\n": "text in quotes",
    "[model]\nspec = 'ok.py:build'\n[data]\nspec = 1979-05-27\n": "text in quotes",
    "seed = 99999999999999999999999\n" + RECIPE: "64 bits",
    "threads = -3\n" + RECIPE: "threads must be from 1",
    "threads = 99999999999999\n" + RECIPE: "threads must be from 1",
    'out = "a\\u0000b"\n' + RECIPE: "null byte",
    f"out = '{'n' * 300}'\n" + RECIPE: "File name too long",
    "a = " + "[" * 3000: "not TOML",
}


@pytest.mark.parametrize("recipe", RECIPES, ids=range(len(RECIPES)))
def test_recipes(place, refused, recipe):
    (place / "r.toml").write_text(recipe)
    options = () if "out" in recipe else ("-o", "out")
    refused("run", "r.toml", *options, says=RECIPES[recipe])


def test_seeds_of_64_bits():
    Settings(seed=2**63 - 1)
    with pytest.raises(InputError, match="64 bits"):
        Settings(seed=2**63)


def test_the_users_code_may_not_end_the_program_unsaid(place, refused):
    (place / "leaves.py").write_text("import sys; sys.exit(7)")
    (place / "unfinished.py").write_text("def build(:\n  '''")
    options = ("--input-shape", "2,4", "-o", "o.onnx")
    refused("export", "leaves.py:build", *options, says="importing 'leaves.py' failed: SystemExit: 7")
    refused("export", "unfinished.py:build", *options, says="unterminated")
    refused("export", "ok.py:leaves", *options, says="SystemExit: 7")


def test_names_that_are_no_text(place, refused):
    name = os.fsdecode(b"\xff\xfe.onnx")
    refused("evaluate", name, "--input-shape", "2,4", says="\\udcff")


def test_a_working_folder_that_is_gone(place, capsys):
    gone = place / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    with pytest.raises(SystemExit) as stop:
        main(["doctor"])
    os.chdir(place)
    assert stop.value.code == 2 and "working folder is gone" in capsys.readouterr().err


NAME = "<script>alert(1)</script>\x1b[2J|"


def test_names_are_escaped_in_every_form(tmp_path):
    from compress.reporting.report import Report
    from compress.steps import Change, Measurement, Step

    changes = (Change(NAME, NAME), Change(NAME, NAME, reason=NAME, skipped=True))
    rows = (Measurement(NAME, size_bytes=3, p50_ms=1.0), Measurement("other", size_bytes=1, p50_ms=2.0))
    report = Report(rows, (Step(NAME, None, changes, (NAME,)),), (NAME,), title=NAME, files={NAME: NAME})
    texts = {"terminal": report.text(verbose=True)}
    for form in ("md", "html", "json"):
        texts[form] = report.write(tmp_path / f"r.{form}").read_text(encoding="utf-8")
    for form, text in texts.items():
        assert "\x1b" not in text, form
        assert "script>alert(1)" in text or "alert" in text, form  # the name itself is still told
    for form in ("md", "html"):
        assert "<script>alert" not in texts[form], form
    heads = [line for line in texts["md"].splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in heads}) == 1  # no cell ends early


def test_reports_tell_no_home_folder(tmp_path, monkeypatch):
    from compress.reporting.report import Report

    monkeypatch.setenv("HOME", str(tmp_path / "someone"))
    inside = str(tmp_path / "someone" / "model.onnx")
    report = Report(notes=(f"read {inside}",), files={"model": inside})
    for form in ("md", "html", "json"):
        text = report.write(tmp_path / f"r.{form}").read_text()
        assert "someone" not in text and "~/model.onnx" in text, form


@pytest.mark.parametrize("kind", [IndexError, TypeError, AttributeError])
def test_whatever_torch_raises_on_a_torchscript_file_is_one_line(place, monkeypatch, kind):
    """Its reader raised IndexError for a record whose name was damaged."""
    from compress.loading.torchscript import EngineModule, load_torchscript, save_torchscript

    module = EngineModule(torch.nn.Linear(2, 2).eval(), torch.backends.quantized.supported_engines[-1])
    path = save_torchscript(module, place / "m.torchscript", (torch.zeros(1, 2),))

    def damaged(*args, **options):
        raise kind("Argument passed to at() was not in the map.")

    monkeypatch.setattr(torch.jit, "load", damaged)
    with pytest.raises(ModelError, match="is not a TorchScript model that can be read: Argument passed to at"):
        load_torchscript(path)
