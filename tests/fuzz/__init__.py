"""Tests with values that nobody thought of. `pytest --long tests/fuzz` tries many more of them."""
