"""Built-in text encoders, each reached through its entry point."""
