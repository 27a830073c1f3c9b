"""Benchmarks: one entry point, `run.py`, and one file per question. Committed results are in `results/`."""
