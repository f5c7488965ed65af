"""What each figure in the README is measured with; `python -m benchmarks.NAME --help`."""
