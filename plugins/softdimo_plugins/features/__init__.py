"""Built-in features, each reached through its entry point."""
