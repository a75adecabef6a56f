"""Secret zone: one reader for each layout of raw image data."""
