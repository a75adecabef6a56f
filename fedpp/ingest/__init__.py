"""Secret zone: from raw image sequences to an encrypted dataset."""
