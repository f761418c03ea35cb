"""Run recipes: the command line, rehearsal on CPU, data, executors, reports. May import all other packages."""
