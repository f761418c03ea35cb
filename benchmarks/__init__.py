"""What the numbers in README and docs come from, each with its command: see benchmarks/README.md."""
