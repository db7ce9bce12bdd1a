"""Quantization-aware training: losses, optimizer, and what the Trainer needs."""
