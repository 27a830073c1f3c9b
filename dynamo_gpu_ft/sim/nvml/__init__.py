"""A simulated `libnvidia-ml.so.1` in C++ that is scripted by commands: source, build and control. See README.md beside this file."""
