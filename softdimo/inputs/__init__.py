"""What goes into a run: batches, caches of tokens, prompts and their encodings."""
