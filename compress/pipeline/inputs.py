"""What a job starts from: the model, the data, the settings, as the user named them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.errors import InputError
from compress.runtimes.runtime import check_precision_name

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.data import DataLoader

    from compress.batches import Batch
    from compress.loading.data import Data
    from compress.loading.loaded import LoadedModel

MOST_THREADS = 1024


@dataclass(frozen=True)
class ModelSource:
    """A model as the user names it: a specification (see `compress.load`), or a module or graph in hand."""

    spec: Any
    weights: str | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    input_shape: tuple[int, ...] | None = None  # with the batch
    trust_pickle: bool = False
    inputs: tuple[str, ...] = ()  # NAME:SHAPE[:DTYPE][=VALUE] of each, see `compress.loading.declared`
    name: str | None = None  # in reports; default: the file's, or what the specification says

    @classmethod
    def of(cls, value: Any) -> ModelSource:
        return value if isinstance(value, ModelSource) else cls(value)


@dataclass(frozen=True)
class DataSource:
    """Data as the user names it (see `compress.open_data`), or a `Data` in hand; `spec=None` is no data."""

    spec: Any = None
    classes: Path | None = None
    resize: int | None = None
    crop: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    calibration_samples: int | None = None  # None: up to 512, at most an eighth of the training samples
    test_samples: int | None = None
    batch_size: int | None = None

    @classmethod
    def of(cls, value: Any) -> DataSource:
        return value if isinstance(value, DataSource) else cls(value)


@dataclass(frozen=True)
class Settings:
    """How a job runs, whatever it does."""

    threads: int | None = None
    seed: int = 0
    json: bool = False
    quiet: bool = False
    verbose: bool = False
    runtime: str = (
        "onnxruntime"  # what runs ONNX files: a name of `runtimes.RUNTIMES`, or auto (each that is installed)
    )

    # In what float layers compute where a runtime measures (`Runtime.offers`): float32, bf16, fp16.
    float_precision: str = "float32"

    def __post_init__(self) -> None:
        check_precision_name(self.float_precision)
        if self.threads is not None and not 1 <= self.threads <= MOST_THREADS:
            raise InputError(f"threads must be from 1 to {MOST_THREADS}, got {self.threads}")
        if not -(2**63) <= self.seed < 2**63:
            raise InputError(f"seed {self.seed} does not fit into 64 bits; give a smaller number")


@dataclass(frozen=True)
class Opened:
    """Everything a job needs, loaded: the model, the data (None where not given), example inputs (batch of 2)."""

    loaded: LoadedModel
    data: Data | None
    inputs: Batch
    batch_size: int = 64
    seed: int = 0
    threads: int | None = None
    declared: bool = False  # the user declared the inputs one by one: they are run as they are

    @property
    def has_inputs(self) -> bool:
        """False where a job that needs none was given a model of unknown sizes."""
        return bool(self.inputs.inputs)

    @property
    def name(self) -> str:
        return self.loaded.name

    @property
    def model(self) -> Any:
        return self.loaded.model

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of the model and the data before reading any figure."""
        return (*self.loaded.notes, *(self.data.notes if self.data is not None else ()))

    def loader(
        self, part: str, *, batch_size: int | None = None, sampler: Iterable[int] | None = None
    ) -> DataLoader[Any]:
        """Return the loader of one part of the data, in batches of the source's size where no other is given.

        Raises:
            InputError: no data was given.
            DataError: it has no such part.
        """
        data = self.data
        if data is None:
            raise InputError(
                f"this needs data for its {part} part; give it with --data, such as imagefolder:DIR, FILE.npz or mnist5k"
            )
        size = self.batch_size if batch_size is None else batch_size
        return data.loader(part, batch_size=size, seed=self.seed, sampler=sampler)

    @property
    def test(self) -> DataLoader[Any] | None:
        """The test loader, or None where there is nothing to measure accuracy on."""
        return None if self.data is None or self.data.test is None else self.loader("test")

    def calibration(self) -> DataLoader[Any]:
        """Real samples to set ranges with: the calibration part, else the training part."""
        data = self.data
        trains = data is not None and data.calibration is None and data.train is not None
        return self.loader("train" if trains else "calibration")

    @property
    def calibration_samples(self) -> int | None:
        """How many samples `calibration` goes through; None where there is nothing to calibrate on."""
        data = self.data
        part = None if data is None else data.calibration if data.calibration is not None else data.train
        if part is None:
            return None
        # A stream does not know its length; it ends at the number that it was limited to.
        return len(part) if hasattr(part, "__len__") else getattr(part, "most", None)


def open_inputs(
    source: ModelSource | Any,
    data: DataSource | Any = None,
    settings: Settings | None = None,
    *,
    needs_inputs: bool = True,
) -> Opened:
    """Load the model and the data that a job works on; check that the model takes the inputs.

    Without `needs_inputs` an ONNX file whose sizes are not known opens with an empty batch.

    Raises:
        CompressError: one line for whatever cannot be found, read, built or executed.
    """
    settings = settings or Settings()
    source, wanted = ModelSource.of(source), DataSource.of(data)
    loaded = open_source(source, seed=settings.seed)
    opened_data = open_data_source(
        wanted,
        loaded.preprocessing,
        settings,
        model_size=_image_size(loaded, source),
        tokenizer=loaded.tokenizer,
    )
    if not needs_inputs and loaded.kind == "onnx" and _unknown(loaded, source, opened_data):
        from compress.batches import Batch

        return Opened(loaded, None, Batch({}), wanted.batch_size or 64, settings.seed, settings.threads)
    return _with_inputs(loaded, opened_data, source, wanted, settings)


def _unknown(loaded: LoadedModel, source: ModelSource, data: Data | None) -> bool:
    has_shapes = source.inputs or source.input_shape or data is not None
    return not has_shapes and any(None in spec.shape[1:] for spec in loaded.inputs)


def reopen(opened: Opened, source: ModelSource, settings: Settings) -> Opened:
    """Load another model onto data that is open already."""
    loaded = open_source(source, seed=settings.seed)
    wanted = DataSource(batch_size=opened.batch_size)
    return _with_inputs(loaded, opened.data, source, wanted, settings)


def open_source(source: ModelSource, *, seed: int = 0) -> LoadedModel:
    """Load the model; a module or graph in hand is taken as it stands."""
    from compress.loading.models import open_model

    loaded = open_model(
        source.spec,
        weights=source.weights,
        model_args=dict(source.model_args),
        trust_pickle=source.trust_pickle,
        seed=seed,
    )
    return loaded if source.name is None else replace(loaded, name=source.name)


def _image_size(loaded: LoadedModel, source: ModelSource) -> tuple[int, int] | None:
    """Height and width of the images that the user says the model takes, or that its file takes alone."""
    shape = source.input_shape or (loaded.input_shape if loaded.kind in ("onnx", "exported") else None)
    return (shape[2], shape[3]) if shape is not None and len(shape) == 4 and shape[1] in (1, 3) else None


def open_data_source(
    source: DataSource,
    preprocessing: Any,
    settings: Settings,
    *,
    model_size: tuple[int, int] | None = None,
    tokenizer: str | None = None,
) -> Data | None:
    """Open the data that the user named; what the options do not say comes from the model's own weights."""
    if source.spec is None:
        return None
    if not isinstance(source.spec, (str, Path)):
        from compress.loading.data import open_data

        return open_data(
            source.spec,
            calibration_samples=source.calibration_samples,
            test_samples=source.test_samples,
            seed=settings.seed,
        )
    from compress.loading.data import open_data

    given = {name: getattr(source, name) for name in ("resize", "crop", "mean", "std", "test_samples")}
    return open_data(
        str(source.spec),
        preprocessing=preprocessing,
        classes=source.classes,
        calibration_samples=source.calibration_samples,
        seed=settings.seed,
        model_size=model_size,
        tokenizer=tokenizer,
        **{name: value for name, value in given.items() if value is not None},
    )


def _with_inputs(
    loaded: LoadedModel, data: Data | None, source: ModelSource, wanted: DataSource, settings: Settings
) -> Opened:
    from compress.loading.declared import read_declared
    from compress.loading.models import example_inputs

    if source.inputs and source.input_shape is not None:
        raise InputError("inputs are declared one by one (--input) or by shape (--input-shape); give one of them")
    declared = read_declared(source.inputs)
    inputs = example_inputs(loaded, input_shape=source.input_shape, declared=declared, data=data, seed=settings.seed)
    inputs, left_out = _taken(loaded, inputs)
    loaded = replace(loaded, notes=(*loaded.notes, *left_out))
    _check_shapes(loaded, inputs, data)
    if source.input_shape is not None:
        loaded = replace(loaded, input_shape=source.input_shape)
    return Opened(
        loaded=loaded,
        data=data,
        inputs=inputs,
        batch_size=wanted.batch_size or 64,
        seed=settings.seed,
        threads=settings.threads,
        declared=bool(declared),
    )


def _taken(loaded: LoadedModel, inputs: Batch) -> tuple[Batch, tuple[str, ...]]:
    """The inputs that the model takes, in its order where they have names; a note for what it leaves out.

    Raises:
        InputError: names of which none, or not all that it needs, are there.
    """
    from compress.batches import parameters_of

    if not inputs.named:
        return inputs, ()
    if loaded.kind == "onnx":
        names: tuple[str, ...] = tuple(spec.name for spec in loaded.inputs)
        needed = names
    else:
        names, needed, _ = parameters_of(loaded.model)
    if not names:
        return inputs, ()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said once, as a note
        bound = inputs.bound(names, needed=needed, whose=repr(loaded.name))
    extra = [name for name in inputs.inputs if name not in bound] if len(bound) < len(inputs.inputs) else []
    note = f"the data's {', '.join(map(repr, extra))} {'is' if len(extra) == 1 else 'are'} no input of {loaded.name!r}"
    return replace(inputs, inputs=bound), (f"{note} and left out",) if extra else ()


def _by_place(loaded: LoadedModel, inputs: Batch) -> tuple[Tensor, ...]:
    """The inputs in the order in which the model lists its own."""
    bound = (
        inputs.bound([spec.name for spec in loaded.inputs], needed=(), whose=repr(loaded.name)) if loaded.inputs else {}
    )
    return tuple(bound.values())


def _check_shapes(loaded: LoadedModel, inputs: Batch, data: Data | None) -> None:
    """Say in the user's terms that a file takes inputs of one size only, and these have another.

    Raises:
        InputError: the file's shape, the inputs', what to give.
    """
    for spec, value in zip(loaded.inputs, _by_place(loaded, inputs)):
        shape = tuple(value.shape)
        fits = len(spec.shape) == len(shape) and all(
            own in (None, size) for own, size in zip(spec.shape[1:], shape[1:])
        )
        if fits or not spec.shape:
            continue
        wanted = ", ".join("N" if size is None or not place else str(size) for place, size in enumerate(spec.shape))
        source = f"data {data.name!r} gives" if data is not None else "the inputs are"
        advice = (
            "change it with --resize and --crop"
            if data is not None and len(shape) == 4
            else "give another --input-shape"
        )
        raise InputError(
            f"{str(loaded.path or loaded.name)!r} takes {spec.name!r} of shape ({wanted}) and {source} {shape}; "
            f"{advice}, or export the model again for that shape"
        )
