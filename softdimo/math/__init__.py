"""The pure mathematics: no engine, no recipe, no registry."""
