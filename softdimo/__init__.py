"""softdimo: one-step generators from masked diffusion image models (Di[M]O, Soft-Di[M]O)."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
API_VERSION = 1
"""Version of the plugin interface. A plugin made for another integer is refused by name."""

__all__ = ["API_VERSION", "__version__", "load"]

if TYPE_CHECKING:
    from softdimo.export import load


def __getattr__(name: str) -> Any:
    """Import `load` (and with it torch) only when it is asked for."""
    if name == "load":
        from softdimo.export import load

        return load
    raise AttributeError(name)
