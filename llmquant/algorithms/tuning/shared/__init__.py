"""What tuning methods share."""
