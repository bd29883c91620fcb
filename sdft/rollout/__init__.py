"""Rollouts: from prompts to completions, by one of several engines."""
