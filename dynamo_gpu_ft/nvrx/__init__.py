"""Ranks under a launcher: NVIDIA's resiliency extension (NVRx) with our limits and verdicts, or the built-in monitor without it.

`python -m dynamo_gpu_ft.nvrx` starts them, `rank.Rank` is what a rank's process uses, `inprocess` holds what NVRx's in-process wrapper
calls. Nothing of NVRx or torch is imported before it is needed.
"""
