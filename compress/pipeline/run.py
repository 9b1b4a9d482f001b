"""The job behind `compress run`: a recipe, done by its own stages or by a search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from compress.errors import InputError
from compress.pipeline.inputs import Settings
from compress.pipeline.outputs import Output
from compress.pipeline.pipeline import Planned, changed, pipeline_of
from compress.pipeline.recipe import Recipe, read_recipe
from compress.pipeline.search.options import SearchOptions
from compress.pipeline.search.searching import search
from compress.reporting.report import Report
from compress.taking import takes


@takes()
def run(
    recipe: Recipe | str | Path,
    *,
    output: Output | str | Path | None = None,
    resume: bool = False,
    overrides: Sequence[str] = (),
    settings: Settings | None = None,
) -> Report:
    """Run a recipe (a value, or the path of its file); see `Pipeline.run`.

    Raises:
        CompressError: one line for whatever is wrong with the recipe, or cannot be used.
    """
    recipe = recipe if isinstance(recipe, Recipe) else read_recipe(recipe, overrides)
    if recipe.search is not None:
        return _searched(recipe, recipe.search, output_of(recipe, output), settings_of(recipe, settings), resume=resume)
    return pipeline_of(recipe).run(
        recipe.model,
        recipe.data,
        output=output_of(recipe, output),
        resume=resume,
        gates=recipe.gates,
        evaluate=recipe.evaluate,
        settings=settings_of(recipe, settings),
    )


def _searched(recipe: Recipe, options: SearchOptions, output: Output, settings: Settings, *, resume: bool) -> Report:
    """A recipe with a table [search] has its other stages chosen by it.

    Raises:
        InputError: it has stages of its own as well.
    """
    check_searchable(recipe)
    return search(
        recipe.model,
        recipe.data,
        output=output,
        options=replace(options, resume=resume),
        gates=recipe.gates,
        metric=recipe.evaluate.measures(),
        settings=settings,
    )


def check_searchable(recipe: Recipe) -> None:
    """Refuse a recipe that searches and says itself how to compress.

    Raises:
        InputError: names the table.
    """
    own = [name for name in ("prune", "finetune", "quantize") if getattr(recipe, name) is not None]
    if own:
        raise InputError(f"a recipe with [search] has its stages chosen by it; leave [{own[0]}] out, or [search]")


def plan(
    recipe: Recipe | str | Path,
    *,
    output: Output | str | Path | None = None,
    overrides: Sequence[str] = (),
    settings: Settings | None = None,
) -> list[Planned]:
    """Say what `run` would do and cost; the model and the data are opened, nothing is written."""
    recipe = recipe if isinstance(recipe, Recipe) else read_recipe(recipe, overrides)
    place = output_of(recipe, output)
    if recipe.search is not None:
        check_searchable(recipe)
        return [Planned("search", changed(recipe.search), False, f"{recipe.search.minutes:g} min")]
    return pipeline_of(recipe).plan(
        recipe.model,
        recipe.data,
        output=place.path,
        gates=recipe.gates,
        evaluate=recipe.evaluate,
        settings=settings_of(recipe, settings),
    )


def for_runtime(recipe: Recipe, runtime: str) -> Recipe:
    """The recipe with a runtime that its result is made for and measured in, whatever it says of that itself."""
    quantize = recipe.quantize and replace(recipe.quantize, runtime=runtime)
    return replace(recipe, quantize=quantize, evaluate=replace(recipe.evaluate, runtime=runtime))


def output_of(recipe: Recipe, output: Output | str | Path | None) -> Output:
    """Where to write: what the caller says, else what the recipe does.

    Raises:
        InputError: neither says.
    """
    if output is None:
        if recipe.out is None:
            raise InputError('there is no place to write to; give -o DIR, or out = "DIR" in the recipe')
        return Output.of(recipe.out)
    return Output.of(output)


def settings_of(recipe: Recipe, settings: Settings | None) -> Settings:
    """The recipe's seed and threads, unless the command gives threads."""
    settings = settings or Settings()
    return replace(settings, seed=recipe.seed, threads=settings.threads or recipe.threads)
