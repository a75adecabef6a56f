"""The commands of `fedpp-site`, one module for each group."""
