"""Built-in teachers, each reached through its entry point."""
