"""The benchmarks of ``scripts/bench``, one module each."""
