"""Probes: what can be read of a GPU through NVML, compared with what was there when watching began.

The way: `attach` -> one guard and one baseline per GPU -> `Probe.look` -> readings. NVML forgets what came before, so a counter says
nothing by itself: differences become readings, and what was there already is one with baseline=True.
"""
