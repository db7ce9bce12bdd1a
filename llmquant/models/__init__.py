"""Models before quantization: their checkpoint on disk, their skeleton and the inventory of their modules."""
