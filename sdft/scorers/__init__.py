"""Scorers: how correct a completion is, from 0 to 1."""
