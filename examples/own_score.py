"""A pruning score of one's own: which channels go first is one function.

python examples/own_score.py
"""

import argparse

from digit_net import build

import compress
from compress.loading.models import example_inputs, open_model
from compress.state import seeded


def spread(filters):
    """Score (n,) of filters (n, elements): one whose elements are all alike says little. The lowest go first."""
    return filters.std(dim=1)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--amount", type=float, default=0.3)
    arguments = parser.parse_args(argv)

    data = compress.open_data("digits")
    with seeded(0):
        module = build()
    trained = compress.fit(module, data, compress.TrainOptions(epochs=arguments.epochs, batch_size=64)).module
    inputs = example_inputs(open_model(trained), data=data)
    top1 = {"unpruned": compress.evaluate(trained, data.loader("test")).top1}
    for method in (spread, "l1", "random"):
        step = compress.prune(trained, inputs, amount=arguments.amount, method=method)
        name = method if isinstance(method, str) else method.__name__
        top1[name] = compress.evaluate(step.model, data.loader("test")).top1
    for name, value in top1.items():
        print(f"{name:>10}: top-1 {value:.2%}, before any fine-tuning")
    return top1


if __name__ == "__main__":
    main()
