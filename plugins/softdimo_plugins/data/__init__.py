"""Built-in data, each reached through its entry point."""
