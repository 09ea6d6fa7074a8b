"""Built-in rewards, each reached through its entry point."""
