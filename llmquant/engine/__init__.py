"""From a plan to a written checkpoint: calibration data, block-by-block run, journal and resume, verification."""
