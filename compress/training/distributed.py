"""The processes that train together: joining them, leaving them on every exit, and exact sums over them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from compress.errors import InputError


@dataclass(frozen=True)
class World:
    """This process among those that train together; a single process is a world of one."""

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process writes the files, the logs and the bars."""
        return self.rank == 0

    def sum(self, values: list[float]) -> list[float]:
        """Add each of `values` over all processes, in double precision."""
        if self.size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return total.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Return what every process holds, in the order of ranks."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, value)
        return found

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the values that the first one has."""
        if self.size > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, src=0)

    def barrier(self) -> None:
        if self.size > 1:
            distributed.barrier()


def asked_for() -> int:
    """How many processes the launcher (torchrun, or `--nproc`) started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def pick_device(name: str = "auto") -> torch.device:
    """Return the device of this process: the GPU of its local rank where there is one.

    Raises:
        InputError: a CUDA device is asked for, or implied, that the machine does not have.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"unknown device {name!r}; use auto, cpu or cuda") from None
    if device.type == "cuda":
        index = local if device.index is None else device.index
        if index >= torch.cuda.device_count():
            raise InputError(f"device cuda:{index} is not there: this machine has {torch.cuda.device_count()} GPUs")
        device = torch.device("cuda", index)
    return device


@contextlib.contextmanager
def joined(device: str | torch.device = "auto") -> Iterator[World]:
    """Join the other processes for a block, and leave on every way out of it, errors and Ctrl-C included.

    Inside a process group that exists already (the user's own, or an outer block) that one is used and kept.
    """
    where = pick_device(str(device))
    if where.type == "cuda":
        torch.cuda.set_device(where)
    if distributed.is_available() and distributed.is_initialized():
        yield World(distributed.get_rank(), distributed.get_world_size(), where)
        return
    if asked_for() == 1:
        yield World(0, 1, where)
        return
    cuda = where.type == "cuda"
    distributed.init_process_group("nccl" if cuda else "gloo", device_id=where if cuda else None)
    try:
        yield World(distributed.get_rank(), distributed.get_world_size(), where)
    finally:
        with contextlib.suppress(Exception):  # a peer that died must not hide the error on its way out
            distributed.destroy_process_group()
