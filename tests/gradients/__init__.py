"""Gradients: reference, operations, tape, whole models. A package, so that its `reference` and `cases` are its own."""
