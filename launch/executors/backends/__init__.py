"""The executors, one a file: ``NAME.py`` defines ``EXECUTOR`` for ``cluster.executor=NAME``."""
