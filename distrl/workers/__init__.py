"""The plain classes that do the work, in this process or as Ray actors: they cannot tell."""
