"""Node and Python on one database: what each of them may expect of the other."""
