"""Built-in tokenizers, each reached through its entry point."""
