"""Tests of the bindings to frameworks and drivers."""
