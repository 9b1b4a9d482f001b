"""Options that would change nothing are refused, each in one line; what switches off or repeats a default is not."""

import pytest

from compress.errors import InputError
from compress.pipeline.prune_options import PruneOptions
from compress.pipeline.quantize_options import QuantizeOptions


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"method": "dynamic", "ranges": "entropy"}, "option ranges changes nothing with method dynamic"),
        ({"method": "dynamic", "per_channel": False}, "option per-tensor changes nothing with method dynamic"),
        ({"method": "dynamic", "accuracy": "best"}, "option accuracy changes nothing with method dynamic"),
        ({"method": "dynamic", "tune_latency": True}, "option tune_latency changes nothing with method dynamic"),
        ({"weight_type": "float16"}, "option weight_type changes nothing with method static"),
        ({"epochs": 3}, "option epochs changes nothing with method static"),
        ({"lr": 0.1}, "option lr changes nothing with method static"),
        ({"method": "dynamic", "scales": "fixed"}, "option scales changes nothing with method dynamic"),
        ({"method": "qat", "runtime": "torch", "scales": "fixed"}, "option scales changes nothing with runtime torch"),
        ({"runtime": "torch", "ranges": "mse"}, "option ranges changes nothing with runtime torch"),
        ({"runtime": "torch", "weight_bits": 4}, "option weight_bits changes nothing with runtime torch"),
    ],
)
def test_quantization(given, text):
    with pytest.raises(InputError, match=f"^quantization {text}; leave it out$"):
        QuantizeOptions(**given)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"steps": 3}, "option steps changes nothing with schedule one-shot"),
        ({"n": 1}, "option n changes nothing without masks"),
        ({"dim": 1}, "option dim changes nothing without masks"),
        ({"masks": True, "round_to": 8}, "option round_to changes nothing with masks"),
    ],
)
def test_pruning(given, text):
    with pytest.raises(InputError, match=f"^pruning {text}; leave it out$"):
        PruneOptions(**given)


def test_defaults_and_switching_off_are_taken():
    assert QuantizeOptions(method="dynamic", tune_latency=False, ranges="minmax").method == "dynamic"
    assert PruneOptions(steps=5, schedule="one-shot", masks=True, dim=1).dim == 1
    assert QuantizeOptions(method="qat", epochs=3, scales="fixed", per_channel=False).epochs == 3
