"""Secret zone: the domain secret, how it is sealed on disk, and what is derived from it."""
