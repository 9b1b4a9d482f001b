"""`compress search`: minutes in, a folder of files out that no other beats."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.fields import given, own_fields, with_options
from cli.help import Grouped
from cli.options import (
    data_options,
    examples,
    gate_options,
    measure_options,
    optional_model_options,
    output_options,
    report_option,
    run_options,
)
from cli.printing import show
from compress.errors import InputError
from compress.pipeline.inputs import DataSource, ModelSource, Settings
from compress.pipeline.outputs import Output
from compress.pipeline.search.clock import begun
from compress.pipeline.search.options import SearchOptions

if TYPE_CHECKING:
    from compress.measures.opening import Measures
    from compress.pipeline.gates import Gates


def search_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for each field of `SearchOptions`; the command receives `options`."""
    fields = own_fields(SearchOptions)
    # Under names of their own: the help has --workers and --resume of training in its groups.
    searches = [field for field in fields if field.name not in ("workers", "resume")]

    @functools.wraps(command)
    def wrapper(**rest: Any) -> Any:
        typed = given(rest, searches)
        typed |= {
            name: value for name, value in (("workers", rest.pop("processes")), ("resume", rest.pop("go_on"))) if value
        }
        return command(options=SearchOptions(**typed), **rest)

    own = [
        click.option(
            "--workers",
            "processes",
            type=click.IntRange(1),
            metavar="N",
            help="Processes that search together on this machine. [default: 1]",
        ),
        click.option(
            "--resume", "go_on", is_flag=True, help="Go on with the search that OUT holds, for --minutes more."
        ),
    ]
    decorated: Callable[..., Any] = wrapper
    for decorate in reversed(own):
        decorated = decorate(decorated)
    return with_options(decorated, searches)


@click.command(
    cls=Grouped,
    short_help="Minutes in, a folder of files out that no other beats.",
    epilog=examples(
        "compress search compress.pipeline.quickstart:build --weights quickstart/weights.pt --data mnist5k"
        " --minutes 2 --max-drop 1 -o front",
        "compress search compress.pipeline.quickstart:build --weights quickstart/weights.pt --data mnist5k"
        " --minutes 1 --resume -o front",
    ),
)
@optional_model_options
@data_options
@output_options(required=False)
@search_options
@click.option(
    "--join",
    type=click.Path(path_type=Path),
    metavar="FRONT",
    help="Take part in the search of another process, here or on a machine with the same folder; its first process reports.",
)
@measure_options
@gate_options("Winner")
@report_option
@run_options
def command(
    source: ModelSource | None,
    data: DataSource,
    output: Output | None,
    options: SearchOptions,
    join: Path | None,
    measures: Measures,
    gates: Gates,
    report: tuple[Path, ...],
    settings: Settings,
) -> None:
    """Try MODEL with channels removed, in fewer bits, repaired, for each runtime here, until the time is up.

    OUT/NAME/model.onnx and OUT/NAME/recipe.toml of each file that no other beats in accuracy, latency and size are there
    from the first minute on, and stay usable however the search ends. The best within the limits is OUT/model.onnx.
    """
    began = time.time()
    from compress.pipeline.search import searching

    if join is not None:
        _check_alone(source, output)
        minutes = click.get_current_context().params["minutes"]  # None where they were not typed
        tried = searching.join(join, minutes=minutes, settings=settings)
        document = {"schema_version": 1, "candidates": tried, "folder": str(join)}
        click.echo(
            json.dumps(document, indent=2)
            if settings.json
            else f"{tried} candidates tried by all; the process that began the search in {join} measures and reports"
        )
        return
    if source is None or output is None:
        missing = "MODEL" if source is None else "-o FRONT"
        raise InputError(f"a search needs {missing}, as in compress search MODEL --data DATA --minutes 10 -o front")
    with begun(began):
        found = searching.search(
            source, data, output=output, options=options, gates=gates, metric=measures, settings=settings
        )
    show(found, settings, report)


def _check_alone(source: ModelSource | None, output: Output | None) -> None:
    """A search that is joined knows its model and its folder."""
    if source is not None or output is not None:
        what = "MODEL" if source is not None else "-o"
        raise InputError(f"--join takes part in a search that knows its model and its folder; leave {what} out")
