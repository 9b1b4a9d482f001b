"""The machine, the versions, the command: what a figure needs beside it to be repeated."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from compress.counting import counted

PACKAGES = ("torch", "torchvision", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy")
# What decides which int8 kernels a runtime picks; all others of /proc/cpuinfo are noise here.
FEATURES = (
    "avx",
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "sve",
)


@dataclass(frozen=True)
class Environment:
    """Where and with what the figures of a report were taken."""

    command: str
    when: str
    compress: str
    python: str
    system: str
    cpu: str
    cores: int
    features: tuple[str, ...] = ()
    memory_bytes: int | None = None
    threads: int | None = None  # of ONNX Runtime; None: not known
    torch_threads: int | None = None
    seed: int | None = None
    packages: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "features": list(self.features), "packages": dict(self.packages)}

    @property
    def counted_threads(self) -> str:
        """Threads in words; PyTorch's beside ONNX Runtime's where they differ."""
        if not self.threads:
            return "default threads"
        others = "" if self.torch_threads in (None, self.threads) else f" (PyTorch: {self.torch_threads})"
        return f"{counted(self.threads, 'thread')}{others}"

    @property
    def sentence(self) -> str:
        """One line for the foot of a report."""
        versions = ", ".join(
            f"{name} {self.packages[name]}" for name in ("torch", "onnxruntime") if name in self.packages
        )
        return f"{self.cpu}, {counted(self.cores, 'core')}, {self.counted_threads}; {versions}; {self.when[:10]}"


def describe(*, threads: int | None = None, seed: int | None = None, command: str | None = None) -> Environment:
    """Describe this process: machine, versions, command line; `threads` as asked for, else what the runtimes take."""
    from compress import __version__

    model, features = cpu()
    runtime, torch = (threads, threads) if threads else default_threads()
    return Environment(
        command=command or command_line(),
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        compress=__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        cpu=model,
        cores=available_cores(),
        features=features,
        memory_bytes=memory_of_machine(),
        threads=runtime,
        torch_threads=torch,
        seed=seed,
        packages=versions(PACKAGES),
    )


def default_threads() -> tuple[int | None, int | None]:
    """Threads that ONNX Runtime and PyTorch take unasked; None where one cannot be imported, as `compress doctor` tells."""
    try:
        import torch

        from compress.runtimes import onnxruntime as runtime
    except Exception:  # a broken installation fails in many ways
        return None, None
    return runtime.default_threads(), torch.get_num_threads()


def command_line() -> str:
    """Return the command as the user would type it again."""
    program = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    return shlex.join([program, *sys.argv[1:]])


def available_cores() -> int:
    """Cores that this process may use (a container may allow fewer than the machine has)."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def cpu() -> tuple[str, tuple[str, ...]]:
    """Return the CPU's name, and those of its features that matter to int8 kernels."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine(), ()
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    fields = {key.strip(): value.strip() for key, _, value in pairs}
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    name = fields.get("model name") or fields.get("Hardware") or platform.machine()
    return name, tuple(feature for feature in FEATURES if feature in flags)


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Return the installed version of each package that is installed."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def memory_of_machine() -> int | None:
    """Bytes of memory that this machine has; None where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
