"""Program files from anyone: refused before torch reads them where they carry more than tensors and known operators.

`torch.export.load` runs code in many ways: it unpickles (sample inputs, weights of unusual kinds, custom objects), looks
up operators by attribute from `torch` on (`torch.serialization.os.system`), evaluates symbolic sizes as Python, executes
guards, imports the modules that a tree of inputs names, and writes names into generated source. `torch.jit.load` runs
the file's own code, whose operators can write files. So each text in the file must have the form that its place has in
files which `torch.export.save` writes; anything else asks for `--trust-pickle`.
"""

from __future__ import annotations

import ast
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from compress.errors import ModelError

_NAMESPACES = ("aten", "prim", "prims", "quantized", "quantized_decomposed", "torchvision")
_FILE_OPERATORS = ("from_file", "save", "_save", "load_library", "_load", "read_file", "write_file")
_HIGHER_ORDER = ("cond", "while_loop", "map_impl", "scan", "wrap_with_set_grad_enabled", "wrap_with_autocast")
_IMPORTING_TREES = ("collections.defaultdict",)  # imports the module of its factory, and calls what it finds there

_IDENTIFIER = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_DOTTED = re.compile(r"[\w.\-\[\]@:]*", re.ASCII)  # paths of modules: "layers.0.weight"
_DEVICE = re.compile(r"[a-z]+(:\d+)?", re.ASCII)
_SYMBOL = re.compile(r"_?[a-z]{1,3}\d+", re.ASCII)
_NUMBER = re.compile(r"[+-]?[\d.]+(e[+-]?\d{1,3})?", re.ASCII)
_OPERATOR = re.compile(r"torch\.ops\.(\w+)\.(\w+)\.(\w+)", re.ASCII)
_HIGHER = re.compile(r"torch\.ops\.higher_order\.(\w+)", re.ASCII)
_SCALAR = re.compile(r"(?:_operator|math|torch)\.(\w+)", re.ASCII)
_SCALAR_FUNCTIONS = set(
    [
        "add",
        "sub",
        "mul",
        "floordiv",
        "truediv",
        "mod",
        "pow",
        "neg",
        "pos",
        "abs",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
        "and_",
        "or_",
        "not_",
        "xor",
        "lshift",
        "rshift",
        "getitem",
        "trunc",
        "floor",
        "ceil",
        "sqrt",
        "sym_int",
        "sym_float",
        "sym_ite",
        "sym_not",
        "sym_max",
        "sym_min",
        "sym_sum",
        "sym_sqrt",
        "_sym_sqrt",
    ]
)
_EXPRESSION_FUNCTIONS = set(
    [
        "Symbol",
        "Integer",
        "Float",
        "Rational",
        "Add",
        "Mul",
        "Pow",
        "Max",
        "Min",
        "Abs",
        "Mod",
        "PythonMod",
        "FloorDiv",
        "ModularIndexing",
        "CleanDiv",
        "CeilDiv",
        "Where",
        "IntTrueDiv",
        "FloatTrueDiv",
        "ToFloat",
        "TruncToInt",
        "TruncToFloat",
        "CeilToInt",
        "FloorToInt",
        "RoundToInt",
        "RoundDecimal",
        "FloatPow",
        "PowByNatural",
        "Identity",
        "Eq",
        "Ne",
        "Lt",
        "Le",
        "Gt",
        "Ge",
        "Equality",
        "Unequality",
        "LessThan",
        "StrictLessThan",
        "GreaterThan",
        "StrictGreaterThan",
        "And",
        "Or",
        "Not",
        "floor",
        "ceiling",
        "sqrt",
        "OpaqueUnaryFn_sqrt",
    ]
)
_NODES = (
    ast.Expression,
    ast.BinOp,
    ast.UnaryOp,
    ast.Compare,
    ast.BoolOp,
    ast.operator,
    ast.unaryop,
    ast.cmpop,
    ast.boolop,
    ast.Load,
)
_LONGEST_EXPRESSION = 2_000
_LARGEST_EXPONENT = 16


class _Refused(Exception):
    """What in the file is more than data, in a few words."""


def check_exported_archive(path: Path) -> None:
    """Refuse a `.pt2` file that reading could make run code.

    Raises:
        ModelError: names what it carries and the flag.
    """
    reader = _reader(path)
    try:
        _check_archive(reader)
    except _Refused as refusal:
        raise ModelError(
            f"{str(path)!r} holds {refusal}, and loading that can run any code; pass --trust-pickle "
            "(trust_pickle=True) if you trust where it comes from"
        ) from None


def load_checked(path: Path) -> Any:
    """Load a `.pt2` file from an untrusted source; see `check_exported_archive`."""
    # Not `torch.export.load`: what this reader refuses, that one tries again as the format of older versions, pickles and all.
    from torch.export.pt2_archive._package import load_pt2

    check_exported_archive(path)
    program = load_pt2(str(path)).exported_programs["model"]
    program._guards_code = []  # Python text that `program.module()` would execute
    return program


def check_torchscript(path: Path) -> None:
    """Refuse a TorchScript file whose code reaches beyond tensors: files, libraries, other packages' operators.

    Raises:
        ModelError: names the operator and the flag.
    """
    reader = _reader(path)
    for name in reader.get_all_records():
        if not name.startswith("code/") or name.endswith(".debug_pkl"):
            continue
        text = reader.get_record(name).decode("utf-8", "replace")
        found = [f"{room}.{op}" for room, op in re.findall(r"\bops\.(\w+)\.(\w+)", text) if room not in _NAMESPACES]
        found += re.findall(rf"\b(?:torch|ops\.\w+)\.(?:{'|'.join(_FILE_OPERATORS)})\b", text)
        if found:
            raise ModelError(
                f"{str(path)!r} calls {found[0]!r}, which reaches beyond tensors; pass --trust-pickle "
                "(trust_pickle=True) if you trust where it comes from"
            )


def _reader(path: Path) -> Any:
    try:
        return torch._C.PyTorchFileReader(str(path))  # the reader that the loader uses, so both see the same records
    except RuntimeError as error:
        kind = "an exported program" if path.suffix == ".pt2" else "a TorchScript model"
        raise ModelError(
            f"{str(path)!r} is not {kind} that this torch {torch.__version__} reads, or is truncated "
            f"({str(error).splitlines()[0][:120]}); save it again"
        ) from error


def _check_archive(reader: Any) -> None:
    names = reader.get_all_records()
    if "archive_format" not in names:
        raise _Refused("an archive of torch 2.7 or older, which keeps pickles")
    for name in names:
        if name.startswith("data/aotinductor/"):
            raise _Refused("compiled native code")
        if re.fullmatch(r"data/(weights|constants)/[^/]*\.pt", name):
            raise _Refused(f"pickled weights of an older torch ({name})")
        if name.startswith("data/sample_inputs/") and reader.get_record(name):
            _check_tensors(reader, name)
        elif re.fullmatch(r"data/(weights|constants)/.*config\.json", name):
            _check_payloads(reader, name)
        elif name.startswith("models/"):
            _check_program(_read_json(reader, name))


def _read_json(reader: Any, name: str) -> Any:
    try:
        return json.loads(reader.get_record(name))
    except (ValueError, RecursionError) as error:
        raise _Refused(f"an entry {name!r} that is no JSON") from error


def _check_tensors(reader: Any, name: str) -> None:
    try:  # torch falls back to unpickling anything where this fails
        torch.load(io.BytesIO(reader.get_record(name)), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the bytes make the unpickler say
        raise _Refused(f"Python objects besides tensors ({name})") from error


def _check_payloads(reader: Any, name: str) -> None:
    content = _read_json(reader, name)
    entries = content.get("config") if isinstance(content, dict) else None
    if not isinstance(entries, dict):
        raise _Refused(f"an entry {name!r} of an unknown form")
    for fqn, entry in entries.items():
        path = entry.get("path_name") if isinstance(entry, dict) else None
        raw = isinstance(path, str) and re.fullmatch(r"(weight|tensor)_\d+", path)
        if not raw or entry.get("use_pickle") is not False:
            raise _Refused(f"a pickled object, {str(fqn)[:80]!r}")


def _check_program(program: Any) -> None:
    if not isinstance(program, dict):
        raise _Refused("a program of an unknown form")
    for symbol in program.get("range_constraints") or {}:
        _match(_SYMBOL, symbol, "a size's name")
    _walk({key: value for key, value in program.items() if key not in _UNREAD})


def _walk(value: Any, key: str = "") -> None:
    if isinstance(value, str):
        check = _TEXTS.get(key)
        if check is None:
            raise _Refused(f"a text where none is expected ({key!r})")
        check(value)
    elif isinstance(value, list):
        for item in value:
            _walk(item, key)
    elif isinstance(value, dict):
        for name, item in value.items():
            if name == "metadata":
                _check_metadata(item)
                continue
            if key in _TABLES:
                _match(_IDENTIFIER, name, "a name")
            _walk(item, name if key not in _TABLES else "")


def _match(form: re.Pattern[str], text: str, what: str) -> None:
    if not isinstance(text, str) or not form.fullmatch(text):
        raise _Refused(f"{what} that is none, {str(text)[:80]!r}")


def _check_operator(text: str) -> None:
    if found := _OPERATOR.fullmatch(text):
        room, name, _ = found.groups()
        if room in _NAMESPACES and name not in _FILE_OPERATORS and not name.startswith("__"):
            return
    if (found := _HIGHER.fullmatch(text)) and found[1] in _HIGHER_ORDER:
        return
    if (found := _SCALAR.fullmatch(text)) and found[1] in _SCALAR_FUNCTIONS:
        return
    raise _Refused(f"an operator that is not one of PyTorch's own, {text[:80]!r}")


def _check_expression(text: str) -> None:
    """A size, as sympy writes it: "2*s85 + 1", "Symbol('s85', positive=True, integer=True)". sympy evaluates it as Python."""
    try:
        tree = ast.parse(text, mode="eval") if len(text) <= _LONGEST_EXPRESSION else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        tree = None
    if tree is None or not all(_is_arithmetic(node) for node in _visited(tree)):
        raise _Refused(f"a size that is no arithmetic, {text[:80]!r}")


def _visited(tree: ast.AST) -> Any:
    """Every node but the parts of a call that `_is_arithmetic` judges with it."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.Call):
            waiting += [item for item in node.args if not _is_text(item)]
        else:
            waiting += ast.iter_child_nodes(node)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _is_arithmetic(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        if not isinstance(node.func, ast.Name) or node.func.id not in _EXPRESSION_FUNCTIONS:
            return False
        flags = all(isinstance(word.value, ast.Constant) and word.arg for word in node.keywords)
        texts = [item.value for item in node.args if isinstance(item, ast.Constant) and isinstance(item.value, str)]
        form = _SYMBOL if node.func.id == "Symbol" else _NUMBER
        powers = node.args[1:] if node.func.id in ("Pow", "FloatPow", "PowByNatural") else []
        return flags and all(form.fullmatch(text) for text in texts) and all(_is_small(item) for item in powers)
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Pow, ast.LShift)):
        return _is_small(node.right)
    if isinstance(node, ast.Constant):
        return isinstance(node.value, (bool, int, float))
    if isinstance(node, ast.Name):
        return bool(_SYMBOL.fullmatch(node.id)) or node.id in ("oo", "int_oo")
    return isinstance(node, _NODES)


def _is_small(node: ast.AST) -> bool:
    if isinstance(node, ast.UnaryOp):
        return _is_small(node.operand)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Integer" and node.args:
        return _is_small(node.args[0])
    return isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and node.value <= _LARGEST_EXPONENT


def _check_tree(text: str) -> None:
    """The structure of inputs or outputs: types that torch knows already, none that imports the module that it names."""
    try:
        parts = [json.loads(text)[1]] if text else []
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise _Refused("a structure of inputs that is no JSON") from error
    while parts:
        part = parts.pop()
        context = part.get("context") if isinstance(part, dict) else ""
        if not isinstance(part, dict) or part.get("type") in _IMPORTING_TREES or "__enum__" in str(context):
            raise _Refused(f"a structure of inputs that is no plain container ({str(part)[:80]})")
        parts += part.get("children_spec") or []


def _check_metadata(metadata: Any) -> None:
    for key, value in metadata.items() if isinstance(metadata, dict) else ():
        if key == "source_fn_stack":  # its second halves are looked up from `torch` on, and not called
            _match(re.compile(r"[\w.,;\[\]<> :'\-]*"), value, "a source function")


def _matcher(form: re.Pattern[str], what: str) -> Callable[[str], None]:
    return lambda text: _match(form, text, what)


_name = _matcher(_IDENTIFIER, "a name")
_dotted = _matcher(_DOTTED, "a path of a module")
# What each text must be, by its key; a key that is not here is refused. Strings of operators ("reflect") are only values.
_TEXTS: dict[str, Callable[[str], None]] = {
    "target": _check_operator,
    "as_operator": _check_operator,
    "expr_str": _check_expression,
    "in_spec": _check_tree,
    "out_spec": _check_tree,
    "name": lambda text: _name(text) if text else None,
    "as_name": _name,
    "forward_arg_names": _name,
    "field_names": _name,
    "user_input_name": _name,
    "type": _matcher(_DEVICE, "a device"),
    "parameter_name": _dotted,
    "buffer_name": _dotted,
    "tensor_constant_name": _dotted,
    "fqn": _dotted,
    "as_string": lambda text: None,
    "as_strings": lambda text: None,
}
_TABLES = ("tensor_values", "sym_int_values", "sym_float_values", "sym_bool_values", "custom_obj_values")
_UNREAD = ("verifiers", "torch_version", "guards_code", "opset_version", "range_constraints", "schema_version")
