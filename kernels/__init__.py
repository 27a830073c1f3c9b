"""What runs on the GPU: CUDA sources, Triton kernels and one Python twin per kernel; packaged as `dynamo_gpu_ft.kernels`.

At the device end of the state flow. Kernels take plain pointers, leave a status word and never trap. Every kernel is an
option: without one, copies go by the batched-copy path of the host core.
"""
