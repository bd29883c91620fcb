"""Scorers: how far a completion is right, from 0 to 1."""
