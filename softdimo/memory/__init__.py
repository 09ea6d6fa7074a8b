"""What a run will hold, computed before it starts."""
