"""lucid beside PyTorch on one NVIDIA GPU: `python -m benchmarks.gpu`.

`cases` says what is run, how fast it can be at best, and what lucid is to reach; `sides` are lucid and PyTorch in their
forms, each in a process of its own (`worker`); `run` checks answers, then lets the sides take turns; `report` writes the table.
"""
