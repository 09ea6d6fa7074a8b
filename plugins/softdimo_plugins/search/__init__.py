"""Built-in search, each reached through its entry point."""
