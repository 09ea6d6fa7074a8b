"""The recipe language: YAML with positions, inheritance, overrides, validation in plain words."""

from softdimo.recipe.loader import Loaded, load, load_ref
from softdimo.recipe.model import Recipe
from softdimo.recipe.shrink import smoke
from softdimo.recipe.writer import content_hash, distributions, dump, settings_hash

__all__ = ["Loaded", "Recipe", "content_hash", "distributions", "dump", "load", "load_ref", "settings_hash", "smoke"]
