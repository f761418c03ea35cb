"""SLURM itself: lines of a job's script, its errors, job states and logs, time limits. No NeMo-Run."""
