"""Bindings to frameworks and drivers, each imported only by those that use it."""
