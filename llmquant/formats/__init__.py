"""On-disk layouts: one file per layout, an independent decoder, the writer, and who can read the result."""
