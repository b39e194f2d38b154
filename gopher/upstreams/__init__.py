"""Where copies of streams go: a host and port, a directory, another gopher. Knows neither of the modes that use it."""
