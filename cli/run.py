"""`compress run`: a recipe from load to report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.help import Grouped
from cli.options import examples, output_options, precision_option, report_option, run_options
from cli.printing import show
from compress.pipeline.inputs import Settings
from compress.pipeline.outputs import Output

if TYPE_CHECKING:
    from compress.pipeline.pipeline import Planned


@click.command(
    cls=Grouped,
    short_help="Every stage of a recipe, cached and resumable.",
    epilog=examples(
        "compress run recipe.toml --dry-run",
        "compress run recipe.toml --set prune.amount=0.4 --set finetune.epochs=1 -o runs/second",
    ),
)
@click.argument("recipe", type=click.Path(path_type=Path), metavar="RECIPE.toml")
@output_options(required=False)
@click.option("--set", "overrides", multiple=True, metavar="TABLE.KEY=VALUE", help="Override a value of the recipe.")
@click.option("--dry-run", is_flag=True, help="Print the plan with what each stage will cost; run nothing.")
@click.option("--resume", is_flag=True, help="Go on where an interrupted run stopped.")
@click.option(
    "--runtime",
    metavar="NAME",
    help="What the result is made for and measured in: onnxruntime, openvino, auto (the faster here). Default: as the recipe says.",
)
@report_option
@run_options
@precision_option
def command(
    recipe: Path,
    output: Output | None,
    overrides: tuple[str, ...],
    dry_run: bool,
    resume: bool,
    runtime: str | None,
    report: tuple[Path, ...],
    settings: Settings,
) -> None:
    """Run the stages of a recipe in order and leave the result with its reports in OUT.

    Finished stages are kept in OUT/.stages by content, options and versions, and never run twice.
    """
    from compress.pipeline.recipe import read_recipe
    from compress.pipeline.run import for_runtime, output_of, plan, run

    read = read_recipe(recipe, overrides)
    if runtime is not None:
        read = for_runtime(read, runtime)
    place = output_of(read, output)
    if click.get_current_context().meta.get("compress.overwrite"):  # also where `out` stands in the recipe
        place = replace(place, overwrite=True)
    if dry_run:
        _print_plan(plan(read, output=place, settings=settings), settings)
        return
    show(run(read, output=place, resume=resume, settings=settings), settings, report)


def _print_plan(stages: list[Planned], settings: Settings) -> None:
    import json

    if settings.json:
        click.echo(json.dumps({"schema_version": 1, "stages": [vars(stage) for stage in stages]}, indent=2))
        return
    for number, stage in enumerate(stages, 1):
        cost = "done already" if stage.cached else stage.cost
        options = f" ({stage.options})" if stage.options else ""
        click.echo(f"{number}. {stage.stage}{options}: {cost}")
