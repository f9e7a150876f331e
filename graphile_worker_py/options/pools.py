"""The worker pools of a runner that has several of them."""

from typing import Final

DEFAULT_NAME: Final = "default"
"""The name of the pool of a runner that has one."""
