"""Data in folders of images, one folder per class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from compress.errors import DataError, nearest
from compress.loading.datasets import FileDataset
from compress.loading.framing import IMAGES
from compress.loading.parts import Parts
from compress.loading.preprocessing import Preprocessing

# Part → the names its folder may have, the preferred one first.
FOLDERS = {
    "train": ("train", "training"),
    "calibration": ("calibration", "calib", "cal"),
    "test": ("test", "val", "valid", "validation", "dev"),
}


def open_folder(
    folder: str | Path, preprocessing: Preprocessing | Callable[[Any], Tensor], classes: tuple[str, ...] | None
) -> Parts:
    """Find class folders of images in `folder`, or in its subfolders train, calibration and test (or val).

    A label is the class's place in `classes` where given, else among all class folders in order of name. Calibration
    images need no class folders.

    A folder of images without class folders is calibration data.

    Raises:
        DataError: no such folder, no images in it, or a class folder that `classes` does not list.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"data folder {str(folder)!r} does not exist; check the path after imagefolder:")
    found = _part_folders(folder) or {"whole": folder}
    if set(found) == {"whole"} and not _class_folders(folder) and _images(folder, deep=False):
        found = {"calibration": folder}  # images without classes are what calibration takes
    names = classes or tuple(sorted({path.name for root in found.values() for path in _class_folders(root)}))
    places = {name: place for place, name in enumerate(names)}
    parts: dict[str, Any] = {}
    for part, root in found.items():
        parts[part] = FileDataset(_files(root, part, places), preprocessing)
    return Parts(folder.name, **parts, classes=names or None, num_classes=len(names) or None)


def _part_folders(folder: Path) -> dict[str, Path]:
    found = {
        part: folder / name
        for part, names in FOLDERS.items()
        if (name := next((name for name in names if (folder / name).is_dir()), None)) is not None
    }
    if {path.name for path in _class_folders(folder)} <= {name for names in FOLDERS.values() for name in names}:
        return found
    # Among bus, car, bicycle, "train" is a class: a part has class folders of its own.
    return {part: root for part, root in found.items() if _class_folders(root) or part == "calibration"}


def read_classes(path: str | Path) -> tuple[str, ...]:
    """Return the class names of a text file, one a line; a label is the line's number, counted from 0.

    Raises:
        DataError: no such file, no names in it, or a name twice.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"class list {str(path)!r} does not exist; check --classes")
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except UnicodeDecodeError as error:
        raise DataError(f"class list {str(path)!r} is not text; write one class name a line") from error
    if not names:
        raise DataError(f"class list {str(path)!r} is empty; write one class name a line")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"class list {str(path)!r} names {twice!r} twice; each class has one line")
    return names


def _class_folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _images(root: Path, *, deep: bool) -> list[Path]:
    paths = root.rglob("*") if deep else root.iterdir()
    return sorted(path for path in paths if path.suffix.lower() in IMAGES and not path.name.startswith("."))


def _files(root: Path, part: str, places: dict[str, int]) -> list[tuple[Path, int | None]]:
    files: list[tuple[Path, int | None]] = []
    for folder in _class_folders(root):
        if folder.name not in places:
            raise DataError(f"class folder {str(folder)!r} is not in the class list; {nearest(folder.name, places)}")
        files += [(path, places[folder.name]) for path in _images(folder, deep=True)]
    if not files and part == "calibration":
        files = [(path, None) for path in _images(root, deep=False)]
    if not files:
        raise DataError(
            f"data folder {str(root)!r} holds no images; put them into one folder per class, as in cat/1.jpg"
        )
    return files
