"""Test-time search: from input embeddings to scored images, methods side by side."""
