"""Flower adapters: all code that patches Flower, or that imports its private modules outside the app bundle.

Each module ends its docstring with "Needed until": what Flower must change before the module can be deleted.
`tests/flower/test_needed_until.py` fails once the installed Flower has changed it. The one patch that must travel in
the bundle is in `coordinator/server/exchange.py`.
"""
