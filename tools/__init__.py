"""Programs for the development of this package."""
