"""Which launch a product gets: measured tables, then an estimate."""
