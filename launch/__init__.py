"""Run it: the command line, rehearsal on CPU, data preparation, executors and reports. Imports all the other packages."""
