"""lucid beside its peers in one run: times, memory, and what they are worth. `python -m benchmarks --help`."""
