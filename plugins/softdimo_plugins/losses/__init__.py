"""Built-in losses, each reached through its entry point."""
