"""Inputs that the user declares: NAME:SHAPE[:DTYPE][=VALUE], for models whose source does not tell their sizes.

input:1,512          512 random float samples
state:2,1,128        a state, the batch in the middle
sr::int64=16000      a scalar, its value with it
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.errors import InputError, nearest

DTYPES: Mapping[str, torch.dtype] = {
    **{f"float{bits}": getattr(torch, f"float{bits}") for bits in (16, 32, 64)},
    **{f"int{bits}": getattr(torch, f"int{bits}") for bits in (8, 16, 32, 64)},
    "uint8": torch.uint8,
    "bool": torch.bool,
    "float": torch.float32,
    "double": torch.float64,
    "int": torch.int64,
}
_FORM = re.compile(r"(?P<name>.+?):(?P<shape>[^:=]*)(:(?P<dtype>[^:=]*))?(=(?P<value>.*))?")


@dataclass(frozen=True)
class Declared:
    """One input as declared. `dtype` None: as the model has it; `value` None: random."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None = None
    value: float | None = None

    def tensor(self, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
        """A stand-in of that shape: of one value, else normal floats, and integers 0 or 1."""
        kind = self.dtype or dtype
        if self.value is not None:
            return torch.full(self.shape, self.value).to(kind)
        if kind.is_floating_point:
            return torch.randn(self.shape, generator=generator).to(kind)
        return torch.randint(0, 2, self.shape, generator=generator).to(kind)


def read_declared(texts: Iterable[str]) -> tuple[Declared, ...]:
    """Read what `--input` was given, each once.

    Raises:
        InputError: a form that is not NAME:SHAPE[:DTYPE][=VALUE], a name given twice.
    """
    found: dict[str, Declared] = {}
    for text in texts:
        one = _read(text)
        if one.name in found:
            raise InputError(f"input {one.name!r} is declared twice; give each input once")
        found[one.name] = one
    return tuple(found.values())


def check_complete(declared: Sequence[Declared], names: Sequence[str], needed: Sequence[str], whose: str) -> None:
    """Refuse inputs that the model has not, and a model's that are not declared.

    Raises:
        InputError: naming the input.
    """
    given = [one.name for one in declared]
    for name in given:
        if names and name not in names:
            raise InputError(f"{whose} has no input {name!r}; {nearest(name, names)}")
    missing = [name for name in needed if name not in given]
    if missing:
        raise InputError(
            f"{whose} also takes {', '.join(map(repr, missing))}, of unknown size; declare each, as in --input {missing[0]}:1,16"
        )


def _read(text: str) -> Declared:
    found = _FORM.fullmatch(text)
    try:
        if found is None:
            raise ValueError
        sizes = found["shape"].strip()
        shape = () if sizes in ("", "scalar") else tuple(int(size) for size in sizes.split(","))
        value = None if found["value"] is None else float(found["value"])
        if shape and min(shape) < 1:
            raise ValueError
    except ValueError as error:
        raise InputError(
            f"input {text!r} is not NAME:SHAPE[:DTYPE]; write it as in x:1,3,224,224, ids:2,16:int64 or rate::int64=16000"
        ) from error
    dtype = found["dtype"]
    if dtype and dtype not in DTYPES:
        raise InputError(f"input {text!r}: unknown type {dtype!r}; {nearest(dtype, DTYPES)}")
    return Declared(found["name"], shape, DTYPES[dtype] if dtype else None, value)
