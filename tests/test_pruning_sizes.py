"""Several sizes from one analysis: each is what it would be alone; one folder each, one report; bad lists in one line."""

import json

import click
import pytest
import torch
from torch import nn

import compress
from cli.fields import Amounts
from compress.errors import InputError, PruningError
from compress.pipeline.prune import prune
from compress.pipeline.prune_options import PruneOptions
from compress.pipeline.recipe import parse_recipe
from compress.pipeline.stages import Prune
from compress.pruning import analysis, sizes

DATA = [(torch.randn(32, 16, generator=torch.Generator().manual_seed(seed)),) for seed in range(4)]


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).eval()


@pytest.mark.parametrize("scope", ["uniform", "balanced", "auto"])
def test_each_size_is_what_it_is_alone_and_the_analysis_is_made_once(scope, monkeypatch):
    found = []

    def counted(*arguments):
        found.append(1)
        return find(*arguments)

    find = analysis.find_channels
    monkeypatch.setattr(analysis, "find_channels", counted)
    request = compress.PruneRequest(target="macs", scope=scope, data=DATA, reconstruct=True, round_to=1)
    module, example = net(), DATA[0][0][:2]
    steps = compress.prune_sizes(module, example, [0.6, 0.2, 0.4], request)
    assert list(steps) == [0.2, 0.4, 0.6] and len(found) == 1
    weights = [sum(value.numel() for value in step.model.parameters()) for step in steps.values()]
    assert weights[0] > weights[1] > weights[2]
    for amount, step in steps.items():
        alone = compress.prune(module, example, request, amount=amount)
        assert step.notes == alone.notes
        for name, value in alone.model.state_dict().items():
            assert torch.equal(step.model.state_dict()[name], value)


def test_blocks_come_in_sizes_too():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))

        def forward(self, x):
            return x + self.layer(x)

    torch.manual_seed(0)
    module = nn.Sequential(*[Block() for _ in range(4)]).eval()
    steps = compress.prune_sizes(module, torch.randn(2, 16), (0.25, 0.5), target="blocks")
    assert [sum(isinstance(part, nn.Identity) for part in step.model) for step in steps.values()] == [1, 2]


@pytest.mark.parametrize(
    ("amounts", "text"),
    [
        ([], "there is no amount to prune to"),
        ([0.2, 0.2], "amount 0.2 is given twice"),
        ([0.2, 1.5], "amount 1.5 is outside"),
        ([0.2, "much"], "amount 'much' is outside"),
        (0.4, "amounts 0.4 are no list of fractions"),
        ("0.4", "amounts '0.4' are no list of fractions"),
    ],
)
def test_bad_amounts_are_one_line(amounts, text):
    with pytest.raises((PruningError, InputError), match=text):
        sizes.check_amounts(amounts)


def test_masks_have_no_sizes():
    with pytest.raises(PruningError, match="masks keep every size"):
        compress.prune_sizes(net(), DATA[0][0], [0.2, 0.4], remove_channels=False)


def test_one_folder_for_each_size_and_one_report(tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8))\n"
    )
    source = compress.ModelSource(f"{tmp_path}/net.py:build", input_shape=(2, 16))
    out = tmp_path / "out"
    report = prune(source, output=out, options=PruneOptions(amount=(0.5, 0.25), target="macs", round_to=1))
    assert [row.name for row in report.rows[1:]] == ["macs-0.25/model.onnx", "macs-0.5/model.onnx"]
    macs = [row.macs for row in report.rows]
    assert macs[1] <= 0.75 * macs[0] and macs[2] <= 0.5 * macs[0]
    rows = json.loads((out / "report.json").read_text())["rows"]
    assert [row["path"] for row in rows[1:]] == [str(out / f"macs-{size}" / "model.onnx") for size in ("0.25", "0.5")]
    for size in ("0.25", "0.5"):
        assert sorted(item.name for item in (out / f"macs-{size}").iterdir()) == [
            "model.onnx",
            "model.pt2",
            "weights.pt",
        ]
        again = compress.load(f"{tmp_path}/net.py:build", weights=str(out / f"macs-{size}" / "weights.pt"))
        assert again[0].out_features < 64
    assert any(note.startswith("macs-0.5: MACs") for note in report.notes)
    # with --overwrite, sizes that are not made again go; what is not ours stays
    (out / "mine").mkdir()
    output = compress.pipeline.outputs.Output(out, overwrite=True)
    prune(source, output=output, options=PruneOptions(amount=(0.3,), target="macs", round_to=1))
    assert sorted(item.name for item in out.iterdir() if item.is_dir()) == ["macs-0.3", "mine"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"masks": True}, "masks keep every size"),
        ({"schedule": "agp"}, "schedule agp prunes one model in steps"),
    ],
)
def test_what_makes_one_model_is_refused(tmp_path, options, text):
    with pytest.raises(InputError, match=text):
        prune(
            compress.ModelSource(net(), input_shape=(2, 16)),
            output=tmp_path / "out",
            options=PruneOptions(amount=(0.2, 0.4), **options),
        )


def test_a_recipe_makes_one_model():
    with pytest.raises(InputError, match=r"prune.amount must be a number, got \[0.2, 0.4\]"):
        parse_recipe('[model]\nspec = "x.py:y"\n[prune]\namount = [0.2, 0.4]\n')
    with pytest.raises(InputError, match="a recipe makes one model"):
        Prune(PruneOptions(amount=(0.2, 0.4)))


def test_the_command_reads_lists():
    assert Amounts().convert("0.4", None, None) == 0.4
    assert Amounts().convert("0.8, 0.6,0.4", None, None) == (0.8, 0.6, 0.4)
    with pytest.raises(click.BadParameter, match=r"'x' in '0\.4,x' is no number"):
        Amounts().convert("0.4,x", None, None)
