"""Kernels for GPUs, in Triton; nothing but `modelcodec.runtime` imports them, and only when they are used."""
