"""Limits of tasks: a leaf, which a runner adds as a plugin if one of its tasks has a limit."""
