"""Losses: divergences, reductions, and how they are computed without logits of size (N, V)."""
