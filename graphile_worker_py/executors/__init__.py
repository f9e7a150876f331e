"""How a task is called: on the event loop, or in a thread."""
