"""Tasks, and what they are called with."""
