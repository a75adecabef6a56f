"""Secret zone: survey of raw images before ingest."""
