"""Pixels: the published algorithm (`reference`), the CPU kernel (`cpu`), the Triton kernel (`fused`)."""
