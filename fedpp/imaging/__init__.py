"""Secret zone: readers of raw images, preparation, class maps and splits by patient."""
