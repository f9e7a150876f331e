"""Whose tables there are: Graphile Worker's, and our own side schema."""
