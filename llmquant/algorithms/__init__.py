"""Methods by their scope: `rounding` sees one matrix, `transforms` one block, `tuning` takes gradients of one block."""
