"""From a candidate's choices to its file, by the stages of its recipe; what candidates share is made once."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from compress import state
from compress.errors import CompressError
from compress.evaluation.size import count_macs, size_bytes
from compress.onnx_files import read_onnx, save_onnx
from compress.pipeline.cache import StageCache, fingerprint
from compress.pipeline.inputs import Opened
from compress.pipeline.pipeline import finished_stage, pipeline_of, start_of
from compress.pipeline.prune import pruned_alike
from compress.pipeline.recipe import Recipe
from compress.pipeline.search.candidate import Candidate, beaten_early
from compress.pipeline.search.judging import Judge
from compress.pipeline.search.space import cost_of, recipe_of, runtime_of
from compress.pipeline.stages import Prune, Quantize, Stage, Work
from compress.pruning.analysis import Analysis
from compress.steps import Step


@dataclass
class Maker:
    """Makes candidates of one model.

    The stages before quantization are kept in a cache on disk, by content and options, as those of `compress run`; all
    amounts of pruning share one analysis of the network.
    """

    opened: Opened
    base: Recipe
    cache: StageCache
    key: str  # what every stage depends on
    analysis: Analysis | None = None

    def file(self, choices: Mapping[str, Any], path: Path) -> Path:
        """Write the candidate's file, byte for byte what its recipe gives."""
        work, key = start_of(self.opened), self.key
        for stage in pipeline_of(recipe_of(choices, self.base)).stages:
            key = fingerprint(key, stage)
            if isinstance(stage, Quantize):
                work = work.after(self._quantized(stage, work, path))
            else:
                run = self._pruned if isinstance(stage, Prune) else None
                work = work.after(finished_stage(stage, work, self.cache, key, run=run))
        assert isinstance(work.model, ir.Model)
        return save_onnx(work.model, path)

    def _quantized(self, stage: Stage, work: Work, path: Path) -> Step:
        """Quantized, written and read back, as a recipe's stage is; not kept: a search makes many, and each once."""
        with state.seeded(self.opened.seed):
            step = stage.run(work, path.parent)
        return replace(step, model=read_onnx(save_onnx(step.model, path.with_name("once.onnx"))))

    def _pruned(self, stage: Stage, work: Work, working: Path) -> Step:
        assert isinstance(stage, Prune)
        step, self.analysis = pruned_alike(work.opened, stage.options, self.analysis)
        return step


def judged(
    number: int, choices: Mapping[str, Any], maker: Maker, judge: Judge, others: Sequence[Candidate], path: Path
) -> Candidate:
    """Make a candidate's file at `path` and judge it: on a few samples, then, unless others beat it there, on all.

    Returns:
        The candidate; its reason names what could not be done, or which other beats it.
    """
    start = time.perf_counter()
    found = Candidate(number, choices)
    try:
        maker.file(choices, path)
        macs = count_macs(path, maker.opened.inputs)
        found = replace(found, size_bytes=size_bytes(path), cost=cost_of(choices, macs))
        found = replace(found, early_db=judge.early(path, runtime_of(choices)))
        better = beaten_early(found, others)
        if better is not None:
            found = replace(found, reason=f"beaten by {better.name} on the first samples")
        else:
            whole, run_s = judge.whole(path, runtime_of(choices))
            found = replace(found, snr_db=whole, run_s=run_s)
    except CompressError as error:
        found = replace(found, reason=f"could not be made: {error}")
    return replace(found, seconds=time.perf_counter() - start)
