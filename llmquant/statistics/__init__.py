"""What calibration measures on the inputs of layers."""
