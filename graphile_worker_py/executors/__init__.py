"""How tasks are called: on the event loop, in threads, in processes, as executable files."""
