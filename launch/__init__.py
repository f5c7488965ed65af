"""Starts work, here or on a cluster: command line, submission, sweeps, monitoring, demo."""
