"""The layout of compressed-tensors: tensors, config.json, an independent decoder, and who can read it."""
