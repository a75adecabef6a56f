"""The vault: the only process of a hospital that holds the domain secret."""
