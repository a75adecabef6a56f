"""Secret zone: a look at raw images before anything is encrypted."""
