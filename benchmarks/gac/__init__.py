"""The figures of GAC's paper, drawn of models that the suite trained: python -m benchmarks.gac."""
