"""What NVRx's in-process wrapper calls around an engine's loop, and a helper that makes a wrapper with it.

A lost rank then costs its process alone: the survivors' function is entered again in the same process, with their shards and weights.
"""
