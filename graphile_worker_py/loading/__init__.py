"""Where tasks come from: a folder, or modules."""
