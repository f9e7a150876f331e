"""How long the texts of history may be."""

from typing import Final

LARGEST_STATEMENT: Final = 8 * 1024**2
"""Bytes of results, errors and logs that one statement carries, unless one job has more."""
LONGEST_TEXT: Final = 64 * 1024
"""Characters of an error, and of the logs of an attempt."""
