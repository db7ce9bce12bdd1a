"""What rounding methods share."""
