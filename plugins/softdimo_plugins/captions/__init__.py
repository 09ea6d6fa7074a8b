"""A small world of captions and pictures: a grammar, scenes that it describes, and how to find them in an image."""
