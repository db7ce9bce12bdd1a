"""Kernels for CPUs: a C++ library, and what calls it."""
