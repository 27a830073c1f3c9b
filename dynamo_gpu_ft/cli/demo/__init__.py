"""The demo: real streams on a real engine, a real SIGKILL, and a comparison byte for byte with the undisturbed run.

`command` is what the command line calls; importing this package starts nothing and imports no engine.
"""
