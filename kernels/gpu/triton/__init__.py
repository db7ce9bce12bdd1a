"""The kernels themselves, in Triton's language; imported only when something runs."""
