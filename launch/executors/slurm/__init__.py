"""How to talk to SLURM: the lines of a job's script, its refusals in plain words, job states and logs, time limits. No NeMo-Run."""
