"""Pure functions on tensors: grids and scales, rounding, packing. No modules, no files."""
