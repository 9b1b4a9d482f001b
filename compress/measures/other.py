"""Models that are none of the known kinds: judged by the user's own metric, and by how far the outputs moved."""

from __future__ import annotations

from compress.measures.task import Task

TASK = Task(
    "other", "none of these: only a metric of your own, and how far the outputs moved", "any outputs, any targets"
)
