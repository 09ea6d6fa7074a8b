"""Built-in metrics, each reached through its entry point."""
