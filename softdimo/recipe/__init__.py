"""Recipes: YAML with positions, inheritance, overrides, validation."""
