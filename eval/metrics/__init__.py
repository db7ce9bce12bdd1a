"""What an evaluation measures: one file each, which holds the measurement and how it is shown."""
