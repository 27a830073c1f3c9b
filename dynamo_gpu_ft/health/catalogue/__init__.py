"""The catalogue: what NVIDIA's fault numbers and the engines' error texts mean, as tables (*.csv), and the functions that read them.

The way: a number or a text with its facts -> `lookup` (or `engine`) -> `Meaning` with the `Verdict` of this single occurrence.
Fusion makes one incident of several; `dynamo-gpu-ft explain` shows the same answers to people.

The tables are our own arrangement and our own words; the facts come from NVIDIA's Xid catalogue (late 2025), the open kernel
modules 515 to 595.45.04 (numbers, names, severities, texts), the headers of CUDA 13.5, NVML 13.615 and NCCL.
"""
