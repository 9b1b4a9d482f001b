"""The folder that a search fills: a folder for each file that no other beats, whole or not there, at any moment."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from compress.errors import OutputError
from compress.files import written_beside
from compress.pipeline.cache import FOLDER
from compress.pipeline.outputs import OURS, Output, output_folder
from compress.pipeline.search.study import JOURNAL, Study

MODEL, RECIPE, SEARCH = "model.onnx", "recipe.toml", "search.toml"
ASIDE = "aside"  # inside the cache's folder: files that were beaten as measured, for a search that goes on


@dataclass(frozen=True)
class Front:
    """`NAME/model.onnx` and `NAME/recipe.toml` of each file of the front; the study and the recipe of the search itself."""

    root: Path

    def check(self, output: Output, *, resume: bool) -> None:
        """Refuse a place that something else occupies, and a search that is there already unless it shall go on.

        Raises:
            OutputError: what is there, and what to do.
        """
        if resume:
            if not Study.exists(self.root):
                raise OutputError(f"{str(self.root)!r} holds no search to go on with; leave --resume out")
            return
        if Study.exists(self.root) and not output.overwrite:
            raise OutputError(
                f"{str(self.root)!r} holds a search; add --resume to go on with it, --overwrite to begin anew, or choose "
                "another -o"
            )
        output.check_folder()

    def clear(self) -> None:
        """Remove what an earlier search left, but for the cache, whose entries are by content."""
        for name in self.names():
            shutil.rmtree(self.root / name, ignore_errors=True)
        shutil.rmtree(self.root / FOLDER / ASIDE, ignore_errors=True)
        for name in (JOURNAL, SEARCH, RECIPE, *OURS):
            (self.root / name).unlink(missing_ok=True)

    def names(self) -> list[str]:
        """The files that are there now, by name."""
        if not self.root.is_dir():
            return []
        # Hidden ones are what a kill has left of a recipe that was being written.
        found = [item.name for item in self.root.iterdir() if (item / RECIPE).is_file()]
        return sorted(name for name in found if not name.startswith("."))

    def model(self, name: str) -> Path:
        return self.root / name / MODEL

    def recipe(self, name: str) -> Path:
        return self.root / name / RECIPE

    def keep(self, name: str, model: Path, recipe: str) -> None:
        """Put a file with its recipe into the front; its external data comes along."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._aside(name))
        place = Output(self.root / name, overwrite=True)
        with output_folder(place) as folder:
            for item in model.parent.glob(f"{model.name}*"):
                shutil.copy2(item, folder.path / item.name)
            (folder.path / RECIPE).write_text(recipe, encoding="utf-8")

    def drop(self, name: str) -> None:
        """Take a file out of the front that another beats; its recipe goes first, so that no half of it looks whole."""
        (self.root / name / RECIPE).unlink(missing_ok=True)
        shutil.rmtree(self.root / name, ignore_errors=True)

    def only(self, names: list[str]) -> None:
        """Take out all others."""
        for name in self.names():
            if name not in names:
                self.drop(name)

    def set_aside(self, name: str) -> None:
        """Take a file out that measurements, which differ from run to run, have beaten."""
        place = self._aside(name)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(place, ignore_errors=True)
        os.replace(self.root / name, place)

    def bring_back(self, name: str) -> bool:
        """Whether a file of the front is there, if need be again."""
        if not self.recipe(name).is_file() and self._aside(name).is_dir():
            os.replace(self._aside(name), self.root / name)
        return self.recipe(name).is_file()

    def choose(self, name: str | None) -> None:
        """Copy the winner to `model.onnx` and `recipe.toml` of the folder itself; None: there is none."""
        for file in (RECIPE, MODEL):
            if name is None:
                (self.root / file).unlink(missing_ok=True)
                continue
            with written_beside(self.root / file) as beside:
                for item in (self.root / name).glob(f"{file}*"):
                    shutil.copy2(item, beside.parent / item.name)

    def write(self, name: str, text: str) -> None:
        """Write a text of the search itself."""
        with written_beside(self.root / name) as beside:
            beside.write_text(text, encoding="utf-8")

    def _aside(self, name: str) -> Path:
        return self.root / FOLDER / ASIDE / name
