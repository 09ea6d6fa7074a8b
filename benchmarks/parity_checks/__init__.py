"""Parity with the public models: one module per group of families, each with a table of check functions."""
