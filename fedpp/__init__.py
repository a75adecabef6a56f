"""fedpp trains one diagnostic model over many hospitals, on ciphertext.

This file imports nothing when it is loaded: whoever imports a subpackage runs it, and the coordinator must not load
key code that way.
"""

TYPE_CHECKING = False  # for mypy, without the import
if TYPE_CHECKING:
    __version__: str
else:

    def __getattr__(name: str) -> str:
        """Return `__version__`: that of the checkout or bundle around this folder, else of the installed package."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import tomllib
        from importlib import metadata
        from pathlib import Path

        try:
            project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
            return project["version"]
        except (OSError, tomllib.TOMLDecodeError, KeyError):
            pass
        try:
            return metadata.version(__name__)
        except metadata.PackageNotFoundError:
            return "unknown"
