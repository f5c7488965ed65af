"""Ranks: the DeepSpeed engine, collectives, liveness and stop signals."""
