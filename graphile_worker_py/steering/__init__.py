"""Cancel jobs, try them again, follow them, wait for their end."""
