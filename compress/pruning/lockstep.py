"""What single layers see, from one run of both networks side by side: each goes on to the next layer once the last is fitted.

As many batches go along as memory holds at that place: early layers of large images have places enough in few samples, and
later batches catch up where less is to be held. A layer that is called more than once, or not by a plain call of the program,
is looked at by hooks instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from compress.batches import Batch, joined
from compress.pruning.layer_views import Draw, Layer, Seen, columns_of, most_rows, views_by_hooks
from compress.pruning.replay import Place, Replay, replays

TOGETHER = 32  # samples of a batch; 8 where they are larger than images of 256×256
LARGE = 3 * 256 * 256  # elements of a sample's inputs
MOST_HELD = 2**28  # elements of both networks' values held between two layers: a gigabyte
FEWEST_BATCHES = 4  # so that some can be held back


def views(
    original: nn.Module, twin: nn.Module, layers: Sequence[Layer], batches: Sequence[Batch]
) -> Iterator[tuple[Layer, Seen]]:
    """What each layer sees, in running order; the caller fits it before the next is asked for."""
    even = _even(batches)
    pair = replays((original, twin), even[0]) if layers and even else None
    if pair is None:
        yield from views_by_hooks(original, twin, layers, batches)
        return
    weights = {layer.name: id(layer.part.weight) for layer in layers}
    owners = dict(original.named_modules())
    before = pair[0].places({name: id(owners[name].weight) for name in weights})
    after = pair[1].places(weights)
    together = [layer for layer in layers if layer.name in before and layer.name in after and _is_direct(layer)]
    run = _Lockstep(pair[0], pair[1], {layer.name: (before[layer.name], after[layer.name]) for layer in together}, even)
    in_step = {layer.name for layer in run.in_order(together)}
    run.prepare([layer for layer in together if layer.name in in_step])
    for layer in layers:
        if layer.name in in_step:
            yield layer, run.seen(layer)
        else:
            yield from views_by_hooks(original, twin, [layer], batches)


def _is_direct(layer: Layer) -> bool:
    """Whether the call's input is the layer's own: padding that is no zeros happens before the call."""
    return layer.calls == 1 and getattr(layer.part, "padding_mode", "zeros") == "zeros"


def _even(batches: Sequence[Batch]) -> list[Batch]:
    """The samples in batches of one size, as a program takes them; none where they cannot be put together."""
    try:
        whole = joined(list(batches)) if len(batches) > 1 else batches[0]
    except Exception:  # sizes that differ from batch to batch
        return []
    each = sum(value[0].numel() for value in whole.values if value.dim()) if whole.samples else 0
    most = min(TOGETHER if each <= LARGE else TOGETHER // 4, max(2, whole.samples // FEWEST_BATCHES))
    size = whole.samples // -(-whole.samples // most)
    return [whole.part(start, start + size) for start in range(0, whole.samples - size + 1, size)]


@dataclass
class _Lockstep:
    before: Replay
    after: Replay
    places: dict[str, tuple[Place, Place]]
    batches: list[Batch]
    plan: dict[str, int] = field(default_factory=dict)  # batches that each layer is fitted on
    wanted: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    streams: dict[str, dict[int, Tensor]] = field(default_factory=dict)  # what the branch was added to before pruning

    def in_order(self, layers: Sequence[Layer]) -> list[Layer]:
        """Those that both networks run in this order."""
        found: list[Layer] = []
        last = (-1, -1)
        for layer in layers:
            at = self._stops(layer)
            if at[0] > last[0] and at[1] > last[1]:
                found.append(layer)
                last = at
        return found

    def _stops(self, layer: Layer) -> tuple[int, int]:
        before, after = self.places[layer.name]
        return self.before.index[before.node], self.after.index[after.node]

    def prepare(self, layers: Sequence[Layer]) -> None:
        """Plan how many batches go along where, and watch the unpruned network's layers."""
        for layer in layers:
            at = self._stops(layer)
            per_batch = self.before.elements(at[0]) + self.after.elements(at[1])
            self.plan[layer.name] = min(len(self.batches), max(FEWEST_BATCHES, MOST_HELD // max(per_batch, 1)))
            self.before.watched[self.places[layer.name][0].node] = self._capture(layer)

    def _rows(self, layer: Layer) -> int:
        columns = layer.part.weight[0].numel() * getattr(layer.part, "groups", 1)
        return max(most_rows(columns) // self.plan[layer.name], 1)

    def _capture(self, layer: Layer) -> Any:
        place = self.places[layer.name][0]

        def watch(output: Tensor, number: int) -> None:
            self.wanted.setdefault(layer.name, {})[number] = self._taken(layer, output)
            if place.other is not None and self.before.has(place.other):
                stream = self.before.value(place.other, number)
                self.streams.setdefault(layer.name, {})[number] = self._taken(layer, stream)

        return watch

    def _taken(self, layer: Layer, value: Tensor, *, cut: bool = True) -> Tensor:
        """The drawn rows of an output, those outputs that stay."""
        last = value if isinstance(layer.part, nn.Linear) else value.movedim(1, -1)
        rows = last.reshape(-1, last.shape[-1])
        rows = rows[Draw(self._rows(layer))(len(rows))]
        return rows[:, layer.kept] if cut and layer.kept is not None else rows

    def seen(self, layer: Layer) -> Seen:
        """Go on to a layer; return what it sees."""
        place, stops = self.places[layer.name][1], self._stops(layer)
        self._go_on(stops, self.plan[layer.name])
        wanted, streams = self.wanted.pop(layer.name), self.streams.pop(layer.name, {})
        groups = getattr(layer.part, "groups", 1)
        seen = Seen([], [], torch.ones(len(layer.part.weight)))
        if place.batchnorm is not None:
            seen.scale, seen.mean = self._batchnorm(place)
        branch = place.other is not None and self.after.has(place.other) and bool(streams)
        for number in range(min(len(self.after.values), len(wanted))):
            x = self.after.value(place.source, number)
            rows = columns_of(layer.part, x, Draw(self._rows(layer)))
            seen.inputs.append(rows.unflatten(1, (groups, -1)))
            seen.wanted.append(wanted[number])
            if branch:
                now = self._taken(layer, self.after.value(place.other, number), cut=False)  # type: ignore[arg-type]  # set where this is asked
                seen.lacking.append(streams[number] - now)
        return seen

    def _go_on(self, stops: tuple[int, int], count: int) -> None:
        for replay, stop in zip((self.before, self.after), (stops[0] + 1, stops[1])):
            del replay.values[count:]
            replay.advance(stop)
            while len(replay.values) < count:
                replay.add(self.batches[len(replay.values)])

    def _batchnorm(self, place: Place) -> tuple[Tensor, Tensor]:
        """The factor that a batch-norm puts on each output, and its running mean, which takes constants."""
        node = place.batchnorm
        assert node is not None
        weight, mean, variance = (node.args[number] for number in (1, 3, 4))
        spread = torch.rsqrt(self.after.known[variance] + node.args[7])  # type: ignore[index]  # an argument that is a node
        factor = spread if weight is None else spread * self.after.known[weight].detach()  # type: ignore[index]  # a node
        return factor, self.after.known[mean]  # type: ignore[index]  # a node
