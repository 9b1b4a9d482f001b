"""Recipes are read strictly: every mistake has its line, its nearest name, its type in words."""

import pytest
from tiny_recipe import RECIPE

from compress.errors import InputError
from compress.pipeline.recipe import commented_recipe, parse_recipe, read_recipe


def test_every_table_becomes_its_value():
    recipe = parse_recipe(RECIPE + '\n[gates]\nmax_drop = 1\nmax_size = "5MB"\n')
    assert (recipe.out, recipe.seed, recipe.threads) == ("out", 3, 1)
    assert recipe.model.spec == "net.py:build" and recipe.data.calibration_samples == 16
    assert recipe.prune.amount == 0.5 and recipe.distill is True
    assert (recipe.finetune.epochs, recipe.finetune.lr) == (3, 0.05)
    assert recipe.quantize.method == "static" and recipe.evaluate.rounds == 5
    assert recipe.gates.max_drop == 1.0 and recipe.gates.max_size == 5_000_000


def test_absent_tables_are_stages_left_out():
    recipe = parse_recipe('[model]\nspec = "resnet18"\n')
    assert recipe.prune is None and recipe.finetune is None and recipe.quantize is None
    assert recipe.data.spec is None


MISTAKES = [
    ("amount = 0.5", "amout = 0.5", r"r.toml:13: unknown key 'amout' in \[prune\]; did you mean 'amount'\?"),
    ("[prune]", "[prine]", r"r.toml:12: unknown table 'prine'; did you mean 'prune'\?"),
    ("seed = 3", "sed = 3", r"r.toml:2: unknown key 'sed'; did you mean 'seed'\?"),
    ("seed = 3", "seed = true", r"r.toml:2: seed must be a whole number, got True"),
    ("amount = 0.5", 'amount = "half"', r"r.toml:13: prune.amount must be a number, got 'half'"),
    ("distill = true", "distill = 1", r"r.toml:19: finetune.distill must be true or false, got 1"),
    ("lr = 0.05", "lr = -1", r"r.toml:18: training option lr must be above 0, got -1"),
    ("epochs = 3", "epochs = 2.5", r"r.toml:16: finetune.epochs must be a whole number, got 2.5"),
    (
        'method = "static"',
        'method = "qat"\nepochs = 0',
        r"r.toml:23: quantization option epochs must be at least 1, got 0",
    ),
    (
        'method = "static"',
        "weight_bits = 3",
        r"r.toml:22: quantization option weight_bits must be at least 4 and at most 8, got 3",
    ),
    ('method = "static"', 'method = "statik"', r"r.toml:22: unknown method 'statik'; did you mean 'static'\?"),
    ('spec = "net.py:build"', "", r"r.toml:5: \[model\] needs 'spec'"),
    ("[evaluate]", "[gates]\nmax_size = 'huge'\n[evaluate]", r"r.toml:25: gates.max_size 'huge' is not a size"),
    ("[prune]", "[prune", r"r.toml: not TOML: .*line 12"),
    ("[data]", "x = [", r"r.toml: not TOML"),
]


@pytest.mark.parametrize(("right", "wrong", "message"), MISTAKES, ids=[wrong for _, wrong, _ in MISTAKES])
def test_mistakes_name_line_and_remedy(right, wrong, message):
    assert right in RECIPE
    with pytest.raises(InputError, match=message) as caught:
        parse_recipe(RECIPE.replace(right, wrong, 1), name="r.toml")
    assert "\n" not in str(caught.value)


def test_without_a_model():
    with pytest.raises(InputError, match=r"there is no table \[model\]"):
        parse_recipe("seed = 1\n")
    with pytest.raises(InputError, match=r"'prune' is a table; write \[prune\]"):
        parse_recipe("prune = 0.5\n")


def test_file_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_recipe(tmp_path / "none.toml")


def test_overrides_replace_add_and_are_checked():
    recipe = parse_recipe(
        RECIPE,
        overrides=["prune.amount=0.4", "quantize.method=dynamic", "seed=9", "gates.max_size=300kB", "data.mean=[0.5]"],
    )
    assert recipe.prune.amount == 0.4 and recipe.quantize.method == "dynamic" and recipe.seed == 9
    assert recipe.gates.max_size == 300_000 and recipe.data.mean == (0.5,)
    for override, message in [
        ("prune.amout=1", r"set prune.amout: unknown key 'amout' in \[prune\]; did you mean 'amount'"),
        ("prine.amount=1", r"unknown table 'prine'; did you mean 'prune'"),
        ("prune.amount", r"is not table.key=value"),
        ("prune.amount=x", r"set prune.amount: prune.amount must be a number, got 'x'"),
    ]:
        with pytest.raises(InputError, match=message):
            parse_recipe(RECIPE, overrides=[override])


def test_a_dash_is_an_underscore():
    assert parse_recipe(RECIPE.replace("batch_size", "batch-size")).finetune.batch_size == 16


def test_the_commented_recipe_is_a_recipe():
    text = commented_recipe(spec='odd"name.py:build', data="mnist5k", weights="w.pt", out="runs/x")
    recipe = parse_recipe(text)
    assert recipe.model.spec == 'odd"name.py:build' and recipe.model.weights == "w.pt" and recipe.out == "runs/x"
    assert recipe.prune is not None and recipe.finetune is not None and recipe.quantize is not None
    onnx = parse_recipe(commented_recipe(spec="m.onnx", data="d.npz", prune=False))
    assert onnx.prune is None and onnx.finetune is None and onnx.quantize is not None
