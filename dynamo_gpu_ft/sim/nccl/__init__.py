"""A simulated `libnccl.so.2` in C++ between processes of one machine, over host memory: source and build. See README.md beside this file."""
