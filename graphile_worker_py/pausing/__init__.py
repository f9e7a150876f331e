"""Heeds pauses: what is paused is left out of fetches, and given back if it was fetched ahead."""
