"""Finished stages of a recipe, kept by what they depend on: content, options, versions."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from compress.reporting.environment import versions
from compress.reporting.record import plain, step_dict
from compress.steps import Change, Step

FOLDER = ".stages"
DECIDING = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy")  # another version may give another result


def fingerprint(*parts: Any) -> str:
    """Hash values that JSON can hold (dataclasses and paths too) into a short key."""
    text = json.dumps([_plain(part) for part in parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    return plain(value)


def environment_key() -> str:
    from compress import __version__

    return fingerprint(versions(DECIDING), __version__, torch.get_num_threads())


def content_key(path: Path) -> str:
    """Hash a file's bytes; of a folder, the names and sizes and times of its files."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    found = [
        (str(p.relative_to(path)), p.stat().st_size, p.stat().st_mtime_ns)
        for p in sorted(path.rglob("*"))
        if p.is_file()
    ]
    return fingerprint(found)


def paths_in(spec: Any) -> list[Path]:
    """Return the files and folders that a specification names: "file.py:build", "imagefolder:DIR", "data.npz"."""
    if not isinstance(spec, (str, Path)):
        return []
    text = str(spec)
    candidates = [text, text.rpartition(":")[0], text.partition(":")[2]]
    return [Path(part) for part in candidates if part and Path(part).exists()]


class StageCache:
    """Folders under `OUT/.stages`, one for each finished stage; each appears whole or not at all."""

    def __init__(self, out: Path) -> None:
        self.root = out / FOLDER

    def clean(self) -> None:
        """Remove what a killed run left half-made."""
        for item in self.root.glob(".half-*"):
            shutil.rmtree(item, ignore_errors=True)

    def finished(self) -> None:
        """Remove checkpoints of stages that were begun and are not part of the run that has ended."""
        for item in self.root.glob("*.work"):
            shutil.rmtree(item, ignore_errors=True)

    def folder(self, name: str, key: str) -> Path:
        return self.root / f"{name}-{key}"

    def has(self, name: str, key: str) -> bool:
        return self.folder(name, key).is_dir()

    def working(self, name: str, key: str) -> Path:
        """A folder that outlives a kill, for a stage that can continue by itself (training's checkpoints)."""
        folder = self.root / f"{name}-{key}.work"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def half(self) -> Path:
        """A folder to fill; `finish` makes it the stage's."""
        self.root.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=".half-", dir=self.root))

    def finish(self, half: Path, name: str, key: str, step: Step | None = None) -> Path:
        """Rename a filled folder into its place; drop the stage's working folder."""
        if step is not None:
            (half / "step.json").write_text(json.dumps(plain(step_dict(step))))
        final = self.folder(name, key)
        try:
            os.replace(half, final)
        except OSError:
            if not final.is_dir():
                raise
            shutil.rmtree(half, ignore_errors=True)  # another process has finished it meanwhile, and may be reading it
        shutil.rmtree(self.root / f"{name}-{key}.work", ignore_errors=True)
        return final

    def step(self, name: str, key: str, model: Any) -> Step:
        """The step of a finished stage, with the model that was read back."""
        return step_from(json.loads((self.folder(name, key) / "step.json").read_text()), model)


def step_from(record: Mapping[str, Any], model: Any) -> Step:
    """Turn a step's JSON back into the value."""
    changes = tuple(
        Change(c["layer"], c["action"], c.get("reason", ""), c["skipped"], c.get("values", {}))
        for c in record["changes"]
    )
    return Step(record["name"], model, changes, tuple(record["notes"]), tuple(record.get("faults", ())))
