"""Metrics of this package: one table of names, one recorder per process, one port per process, off by default.

Rooms call `metrics().add(...)`, `.set(...)` or `.observe(...)`; the process that owns them calls `start` once. It only listens:
nothing here is ever asked for a decision.
"""

from dynamo_gpu_ft.metrics.listen import listener
from dynamo_gpu_ft.metrics.recorder import Recorder, metrics, port_of
from dynamo_gpu_ft.metrics.table import TABLE, Metric

__all__ = ["TABLE", "Metric", "Recorder", "listener", "metrics", "port_of"]
