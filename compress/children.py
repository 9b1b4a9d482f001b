"""Python processes that we start ourselves."""

from __future__ import annotations

import os
import sys


def environment() -> dict[str, str]:
    """This process's environment, in which a child finds the same modules as it does, whatever the current folder is."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(part for part in sys.path if part)}
