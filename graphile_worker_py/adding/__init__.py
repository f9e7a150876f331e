"""How jobs are added."""
