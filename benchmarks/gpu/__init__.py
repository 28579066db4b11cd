"""``python -m benchmarks.gpu``: one command that proves the GPU path on a machine that has one."""
