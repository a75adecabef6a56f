"""The coordinator: the ServerApp, its strategy and `python -m coordinator`."""
