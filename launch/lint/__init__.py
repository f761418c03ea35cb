"""Every recipe and script of a repository, judged for the GPUs that it names, and compared with an earlier revision."""
