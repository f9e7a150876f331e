"""Tests of the Python runtime."""
