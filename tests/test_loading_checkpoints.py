"""Checkpoints of every usual wrapping load; what does not fit is named in one line."""

import argparse
import collections
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from compress.errors import WeightsError
from compress.loading.state_dicts import WRAPPERS, load_state_dict, read_state_dict


def net(width=4):
    return nn.Sequential(
        collections.OrderedDict(first=nn.Linear(3, width), norm=nn.BatchNorm1d(width), last=nn.Linear(width, 2))
    )


def assert_same(state, expected):
    assert list(state) == list(expected)
    for key in expected:
        torch.testing.assert_close(state[key], expected[key], rtol=0, atol=0)


@pytest.fixture
def state():
    return net().state_dict()


def saved(content, tmp_path, name="checkpoint.pth", **options):
    torch.save(content, tmp_path / name, **options)
    return tmp_path / name


@pytest.mark.parametrize("wrapper", ["", *WRAPPERS])
@pytest.mark.parametrize("legacy", [False, True])
def test_wrappers(tmp_path, state, wrapper, legacy):
    content = {wrapper: state, "epoch": 3, "best": 0.5} if wrapper else state
    path = saved(content, tmp_path, _use_new_zipfile_serialization=not legacy)
    assert_same(read_state_dict(path), state)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes(tmp_path, state, prefix):
    path = saved({"state_dict": {prefix + key: value for key, value in state.items()}}, tmp_path)
    assert_same(read_state_dict(path), state)


def test_a_layer_called_module_keeps_its_name(tmp_path):
    inner = nn.Sequential(collections.OrderedDict(module=nn.Linear(2, 2), head=nn.Linear(2, 2))).state_dict()
    assert_same(read_state_dict(saved(inner, tmp_path)), inner)


def test_averaged_model(tmp_path, state):
    averaged = torch.optim.swa_utils.AveragedModel(net())
    averaged.module.load_state_dict(state)
    assert_same(read_state_dict(saved({"model": averaged.state_dict()}, tmp_path)), state)


def test_safetensors(tmp_path, state):
    save_file({f"module.{key}": value for key, value in state.items()}, tmp_path / "w.safetensors")
    loaded = read_state_dict(tmp_path / "w.safetensors")
    assert_same({key: loaded[key] for key in state}, state)


def test_what_training_scripts_leave_beside(tmp_path, state):
    optimizer = torch.optim.Adam(net().parameters()).state_dict()
    content = {"model": state, "optimizer": optimizer, "args": argparse.Namespace(lr=0.1), "best": np.float64(0.5)}
    assert_same(read_state_dict(saved(content, tmp_path)), state)


def test_pickled_module_needs_the_flag(tmp_path, state):
    path = saved({"model": nn.Linear(3, 2)}, tmp_path)
    with pytest.raises(
        WeightsError, match=r"holds Python objects besides tensors.*pass trust_pickle=True if you trust"
    ):
        read_state_dict(path)
    assert list(read_state_dict(path, trust_pickle=True)) == ["weight", "bias"]


class Bomb:
    fired = False

    def __reduce__(self):
        return (setattr, (Bomb, "fired", True))


def test_untrusted_code_does_not_run(tmp_path):
    with pytest.raises(WeightsError, match="trust_pickle=True"):
        read_state_dict(saved({"state_dict": Bomb()}, tmp_path))
    assert not Bomb.fired


def garbage(path):
    path.write_bytes(b"hello world, this is no checkpoint at all")


def empty(path):
    path.write_bytes(b"")


def half_zip(path):
    torch.save(net().state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def half_legacy(path):
    torch.save(net().state_dict(), path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("write", [garbage, empty, half_zip, half_legacy])
@pytest.mark.parametrize("trust", [False, True])
def test_not_a_checkpoint(tmp_path, write, trust):
    path = tmp_path / "odd.pth"
    write(path)
    with pytest.raises(WeightsError, match=r"odd\.pth' is not a checkpoint, or is truncated; fetch or save it again"):
        read_state_dict(path, trust_pickle=trust)


def test_not_safetensors(tmp_path):
    garbage(tmp_path / "odd.safetensors")
    with pytest.raises(WeightsError, match="is not a safetensors file, or is truncated"):
        read_state_dict(tmp_path / "odd.safetensors")


def test_no_state_dict_inside(tmp_path):
    with pytest.raises(WeightsError, match=r"holds no state dict, but a dict of epoch, lr; choose another"):
        read_state_dict(saved({"epoch": 3, "lr": 0.1}, tmp_path))
    with pytest.raises(WeightsError, match=r"holds no state dict, but a list; choose another"):
        read_state_dict(saved([1, 2], tmp_path))


def test_missing_file(tmp_path):
    with pytest.raises(WeightsError, match=r"absent\.pth' does not exist; check the path"):
        read_state_dict(tmp_path / "absent.pth")


def test_torchscript(tmp_path):
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "script.pt")
    with pytest.raises(WeightsError, match=r"is a TorchScript archive; save model\.state_dict"):
        read_state_dict(tmp_path / "script.pt")


def test_code_that_is_not_here(tmp_path):
    (tmp_path / "gone.pkl").write_bytes(pickle.dumps(Bomb)[:-1].replace(b"Bomb", b"Gone") + b".")
    with pytest.raises(WeightsError, match="needs code that is not here"):
        read_state_dict(tmp_path / "gone.pkl", trust_pickle=True)


def test_load_fits(state):
    module = net()
    load_state_dict(module, state)
    assert_same(module.state_dict(), state)


def test_counters_of_batch_norm_may_be_missing(state):
    module = net()
    load_state_dict(module, {key: value for key, value in state.items() if "num_batches" not in key})
    torch.testing.assert_close(module.state_dict()["norm.running_var"], state["norm.running_var"])


def test_lightning_prefix(state):
    module = net()
    load_state_dict(module, {f"model.{key}": value for key, value in state.items()})
    torch.testing.assert_close(module.first.weight.detach(), state["first.weight"])


def test_missing_and_unexpected_are_listed(state):
    renamed = {key.replace("last", "head"): value for key, value in state.items()}
    module = net()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(
        WeightsError,
        match=r"weights 'w' do not fit Sequential: 2 missing \(last\.weight, last\.bias\); "
        r"2 unexpected \(head\.weight, head\.bias\); name the model",
    ):
        load_state_dict(module, renamed, "weights 'w'")
    assert_same(module.state_dict(), before)


def test_long_lists_are_shortened():
    other = {f"layer{index}.weight": torch.zeros(1) for index in range(100)}
    with pytest.raises(WeightsError) as caught:
        load_state_dict(net(), other, "weights 'w'")
    text = str(caught.value)
    assert "belong to another architecture than Sequential" in text
    assert "100 unexpected (layer0.weight, layer1.weight, layer2.weight, …)" in text
    assert "\n" not in text and len(text) < 400


def test_shapes_are_named(state):
    misshapen = {**state, "last.weight": torch.zeros(5, 4), "extra": torch.zeros(1)}
    with pytest.raises(WeightsError, match=r"1 of another shape \(last\.weight is 5×4, expected 2×4\)"):
        load_state_dict(net(), misshapen)


def test_a_pruned_checkpoint_shrinks_the_layers():
    pruned = net(width=3)
    module = net(width=4)
    load_state_dict(module, pruned.state_dict())
    assert module.first.out_features == 3
    x = torch.randn(5, 3)
    torch.testing.assert_close(module.eval()(x), pruned.eval()(x), rtol=0, atol=0)


def test_a_checkpoint_of_wider_layers_is_refused():
    with pytest.raises(
        WeightsError,
        match=r"'w' .* Sequential: 7 of another shape \(first\.weight is 5×3, expected 4×3, .*not a pruned version",
    ):
        load_state_dict(net(width=4), net(width=5).state_dict(), "weights 'w'")
