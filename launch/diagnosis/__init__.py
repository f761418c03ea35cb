"""Why a run failed, from its logs: the first cause before its echoes. Imports neither torch nor NeMo.

Logs of any size are read once, in bounded memory. What is recognized is a table, ``configs/failures.yaml``.
"""
