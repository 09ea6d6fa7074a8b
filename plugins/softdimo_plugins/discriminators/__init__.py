"""Built-in discriminators, each reached through its entry point."""
