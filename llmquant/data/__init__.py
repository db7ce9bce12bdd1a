"""Text, as documents and as windows of tokens: what calibration and evaluation read."""
