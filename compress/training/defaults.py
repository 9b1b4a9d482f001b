"""What `optimizer="auto"` and an open learning rate stand for: what the network is made of decides.

Attention networks are trained with AdamW at small rates (Devlin et al.: BERT, 2019, appendix A.3 fine-tunes at 2e-5 to
5e-5; Touvron et al.: DeiT, 2021, table 9 trains at 5e-4): SGD moves their layers too unevenly. Others get SGD with
momentum. A trained network is moved a fifth or a tenth as fast as one that knows nothing yet.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from torch import fx, nn

from compress.training.optimizers import optimizer_class
from compress.training.options import AUTO, TrainOptions


@dataclass(frozen=True)
class Rates:
    """Learning rates of one optimizer: from scratch, and from a trained network."""

    train: float
    finetune: float


# (whether it is an attention network, optimizer) → its rates; others: the class's own default, a tenth to fine-tune.
RATES = {
    (False, "sgd"): Rates(0.05, 0.01),
    (True, "sgd"): Rates(0.01, 0.001),
    (False, "adam"): Rates(1e-3, 1e-4),
    (True, "adam"): Rates(5e-4, 5e-5),
    (False, "adamw"): Rates(1e-3, 1e-4),
    (True, "adamw"): Rates(5e-4, 5e-5),
    (False, "rmsprop"): Rates(1e-3, 1e-4),
    (True, "rmsprop"): Rates(5e-4, 5e-5),
}


def settled(options: TrainOptions, module: nn.Module) -> tuple[TrainOptions, tuple[str, ...]]:
    """Return `options` with an optimizer and (but for `lr="auto"`) a rate, and a sentence where these were chosen here."""
    attention = is_attention(module)
    optimizer = options.optimizer
    if optimizer == AUTO:
        optimizer = "adamw" if attention and not options.nesterov else "sgd"
    rate = (
        options.lr
        if options.lr is not None
        else default_rate(optimizer, attention=attention, finetune=options.finetune)
    )
    chosen = options.settled(optimizer=optimizer, lr=rate)
    if options.optimizer != AUTO and options.lr is not None:
        return chosen, ()
    kind = "attention networks" if attention else "networks without attention"
    at = "" if rate == AUTO else f" at learning rate {rate:g}"
    if options.optimizer != AUTO:
        return chosen, (f"learning rate {rate:g}, the usual one of {optimizer} for {kind}; lr sets another",)
    return chosen, (f"trained by {optimizer}{at}, as {kind} usually are; optimizer and lr set others",)


def default_rate(optimizer: str, *, attention: bool, finetune: bool) -> float:
    """The learning rate where none is given."""
    rates = RATES.get((attention, optimizer))
    if rates is None:
        own = float(inspect.signature(optimizer_class(optimizer)).parameters["lr"].default)
        rates = Rates(own, own / 10)
    return rates.finetune if finetune else rates.train


def is_attention(module: nn.Module) -> bool:
    """Whether attention carries the network: some layer is attention, and kernels over space hold less than half the weights.

    Layers are known by their class's name; those of a program of `torch.export` or an ONNX graph by what they call.
    Squeeze-and-excitation is no attention.
    """
    if not any("attention" in type(part).__name__.lower() for part in module.modules()) and not _calls_attention(
        module
    ):
        return False
    weights = [value for value in module.parameters() if value.dim() > 1]
    kernels = sum(value.numel() for value in weights if value.dim() > 3 and max(value.shape[2:]) > 1)
    return kernels < sum(value.numel() for value in weights) / 2


def _calls_attention(module: nn.Module) -> bool:
    graph = getattr(module, "graph", None)
    if isinstance(graph, fx.Graph):
        return any("scaled_dot_product_attention" in str(node.target) for node in graph.nodes)
    nodes = getattr(graph, "graph", ())  # of an ONNX graph: a softmax that goes into a product
    softmaxes = (node for node in nodes if node.op_type == "Softmax")
    return any(reader.op_type == "MatMul" for node in softmaxes for reader, _ in node.outputs[0].uses())
