"""Fused kernels as CUDA C++."""
