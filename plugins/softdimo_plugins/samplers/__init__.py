"""Built-in samplers, each reached through its entry point."""
