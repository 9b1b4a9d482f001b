"""What functions take: nine parameters at most but for the facade, keywords that a type checker knows, fields as their options have them."""

import ast
from pathlib import Path

import pytest

from compress.pruning.request import PruneFields, PruneRequest
from compress.quantization import options as quantization

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted([*ROOT.glob("compress/**/*.py"), *ROOT.glob("cli/**/*.py")])
MOST = 9
# Public verbs of `compress`, whose keywords are what users write; what they call takes values.
FACADE = {
    "compress/graph/exporting.py:export",
    "compress/loading/data.py:Data.loader",
    "compress/loading/data.py:open_data",
    "compress/pipeline/compare.py:compare",
    "compress/pipeline/train.py:train",
    "compress/training/loop.py:fit",
}
# Functions that pass on the arguments of whatever function they are given, which no annotation can name.
PASS_ON = {
    "cli/help.py:Grouped.__init__": "click's own arguments of a command",
    "cli/main.py:Verbs.main": "click's own arguments of main",
    "compress/quantization/dynamic_operators.py:Rewriter.node": "attributes of any ONNX operator",
    "compress/quantization/fake_quantize.py:FakeQuantize._load_from_state_dict": "torch's own arguments",
    "compress/quantization/rewrites/matching.py:Replacement.op": "attributes of any ONNX operator",
    "compress/shapes.py:Skip.forward": "what the block took that it stands for",
    "compress/tracing.py:regular_bags.run": "torch's own arguments of embedding_bag",
    "compress/training/arguments.py:call": "arguments of any optimizer or scheduler, checked by its signature",
    "compress/training/options.py:TrainOptions._set": "fields by name, as dataclasses.replace takes them; checked",
    "compress/training/options.py:TrainOptions.settled": "fields by name, as dataclasses.replace takes them; checked",
    "compress/training/recomputation.py:_recompute": "arguments of the user's own forward",
}


def functions(path):
    """Each function of a file with its name inside the file."""

    def walk(node, inside):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                name = f"{inside}{child.name}"
                if not isinstance(child, ast.ClassDef):
                    yield f"{path.relative_to(ROOT)}:{name}", child
                yield from walk(child, f"{name}.")
            else:
                yield from walk(child, inside)

    yield from walk(ast.parse(path.read_text()), "")


ALL = [item for path in FILES for item in functions(path)]


def count(function):
    """How many arguments a caller may give, the object itself not counted."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    own = bool(named) and named[0].arg in ("self", "cls")
    return len(named) - own + (arguments.vararg is not None) + (arguments.kwarg is not None)


def wraps(function):
    """Whether it stands in for another function, whose arguments it passes on."""
    return any("functools.wraps" in ast.unparse(decorator) for decorator in function.decorator_list)


def test_only_the_facade_has_functions_of_more_than_nine_parameters():
    long = {name: count(function) for name, function in ALL if count(function) > MOST}
    assert long.keys() == FACADE, "pass a frozen value whole, or strike from the list what is no longer long"


def test_no_function_takes_keywords_that_a_type_checker_cannot_know():
    blind = {
        name
        for name, function in ALL
        if function.args.kwarg is not None
        and ast.unparse(function.args.kwarg.annotation or ast.Constant("Any")) in ("Any", "object", "'Any'")
        and not wraps(function)
    }
    assert blind == PASS_ON.keys(), "spell the keywords out: Unpack[a TypedDict], or a frozen value"


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        (PruneRequest, PruneFields),
        *((getattr(quantization, f"{kind}Options"), getattr(quantization, f"{kind}Fields"))
          for kind in ("Static", "Dynamic", "WeightOnly", "Half")),
    ],
    ids=lambda kind: kind.__name__,
)  # fmt: skip
def test_keywords_of_a_call_are_the_fields_of_the_options(options, fields):
    written = {name: str(getattr(kind, "__forward_arg__", kind)) for name, kind in fields.__annotations__.items()}
    assert written == {name: str(kind) for name, kind in options.__annotations__.items()}


def test_keywords_of_finetune_are_those_of_train():
    from compress.pipeline.train import TrainChoices, train

    own = set(train.__wrapped__.__annotations__) - {"model", "data", "output", "finetune", "return"}
    assert set(TrainChoices.__annotations__) == own
