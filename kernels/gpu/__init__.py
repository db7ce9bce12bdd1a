"""The GPU kernels, in Triton: layout of the weights, the kernels themselves, which one runs when, and the ops."""
