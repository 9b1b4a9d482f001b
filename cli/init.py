"""`compress init`: a commented recipe to start from."""

from __future__ import annotations

from pathlib import Path

import click

from cli.help import Grouped
from cli.options import examples


@click.command(
    cls=Grouped,
    short_help="Write a commented recipe.",
    epilog=examples(
        "compress init",
        "compress init compress.pipeline.quickstart:build --weights quickstart/weights.pt --data mnist5k -o digits.toml",
    ),
)
@click.argument("model", metavar="[MODEL]", required=False, default="compress.pipeline.quickstart:build")
@click.option("--weights", metavar="FILE", help="Checkpoint to start from.")
@click.option("--data", metavar="SPEC", default="mnist5k", show_default=True, help="As in the other commands.")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    default=Path("recipe.toml"),
    show_default=True,
    metavar="FILE",
    help="The file to write.",
)
@click.option("--overwrite", is_flag=True, help="Replace FILE.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, nothing else.")
def command(model: str, weights: str | None, data: str, out: Path, overwrite: bool, as_json: bool) -> None:
    """Write a recipe for `compress run`, with each option explained."""
    import json

    from compress.files import check_writable, written_beside
    from compress.pipeline.recipe import commented_recipe

    check_writable(out, overwrite=overwrite)
    text = commented_recipe(spec=model, weights=weights, data=data, name=out.name, prune=not model.endswith(".onnx"))
    with written_beside(out) as beside:
        beside.write_text(text, encoding="utf-8")
    message = {"schema_version": 1, "recipe": str(out)}
    click.echo(json.dumps(message) if as_json else f"wrote {out}; next: compress run {out} --dry-run")
