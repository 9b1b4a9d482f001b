"""Global state borrowed and given back, also when an exception passes."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import random
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[nn.Module]:
    """Run a block with `module` in eval mode and without gradients; restore each submodule's own flag."""
    flags = {name: part.training for name, part in module.named_modules()}
    # Set the attribute itself: modules from `torch.export` refuse .eval().
    for part in module.modules():
        part.training = False
    try:
        with torch.no_grad():
            yield module
    finally:
        for name, part in module.named_modules():
            part.training = flags.get(name, part.training)


def as_in_training(module: nn.Module) -> None:
    """Set what is in eval mode to training, but for normalization and dropout, which go on as in eval.

    Detectors give their losses in this mode only, and statistics must not move while a network is judged.
    """
    for part in module.modules():
        still = isinstance(part, (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd))
        part.training = not still


def copied(module: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy, also of a module that has just been trained with masks or weight normalization.

    Those keep a weight computed from others as a plain attribute, which PyTorch refuses to copy while gradients hang on it.
    """
    memo = {} if memo is None else memo
    for part in module.modules():
        computed = [value for value in vars(part).values() if isinstance(value, Tensor) and not value.is_leaf]
        memo |= {id(value): value.detach().clone() for value in computed}
    return copy.deepcopy(module, memo)


def own_buffers(module: nn.Module) -> nn.Module:
    """A twin that shares the parameters: what a forward writes into buffers stays in the twin."""
    return copied(module, {id(value): value for value in module.parameters()})


class Borrowed:
    """A setting of the whole process that several threads may borrow at once: the last to leave gives it back.

    Each restoring what it found would not do: who came second finds the first one's value.
    """

    def __init__(self, read: Callable[[], Any], write: Callable[[Any], None], value: Any) -> None:
        self.read, self.write, self.value = read, write, value
        self.guard, self.users, self.before = threading.Lock(), 0, None

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with self.guard:
            if self.users == 0:
                self.before = self.read()
                self.write(self.value)
            self.users += 1
        try:
            yield
        finally:
            with self.guard:
                self.users -= 1
                if self.users == 0:
                    self.write(self.before)

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Run a block that may leave the setting changed; it is afterwards as it was, for those who borrow it too.

        What is found at its start may be another thread's, so that what was before all of them counts.
        """
        with self.guard:
            found = self.before if self.users else self.read()
        try:
            yield
        finally:
            with self.guard:
                self.before = found
                self.write(self.value if self.users else found)


_SLOW = Borrowed(torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled, False)
_UNLOGGED = Borrowed(lambda: logging.root.manager.disable, logging.disable, logging.CRITICAL)
_QUIET: dict[str, Borrowed] = {}


def slow_attention() -> contextlib.AbstractContextManager[None]:
    """Run a block with attention's fast path off, which hides heads and layers in one operator."""
    return _SLOW()


def kept_attention() -> contextlib.AbstractContextManager[None]:
    """Run a block that may leave attention's fast path changed, as `torch.export` does where it fails."""
    return _SLOW.kept()


def quiet_logger(name: str) -> contextlib.AbstractContextManager[None]:
    """Run a block with the messages of the logger `name` below CRITICAL suppressed."""
    logger = logging.getLogger(name)
    return _QUIET.setdefault(name, Borrowed(lambda: logger.level, logger.setLevel, logging.CRITICAL))()


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run a block with Python, NumPy and torch (CPU) seeded; restore their states afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def unlogged() -> contextlib.AbstractContextManager[None]:
    """Run a block with the messages of every logger suppressed, where what matters arrives as an exception."""
    return _UNLOGGED()


@contextlib.contextmanager
def unwarned() -> Iterator[None]:
    """Run a block without its warnings, those that a library gives of itself at each call."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Run a block without what it prints, warns and logs, where what matters arrives as an exception."""
    with unlogged(), unwarned(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Run a block with `count` intra-op torch threads (None: as they are); restore the count."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
