"""Tasks: their rows, their prompts, and where both come from."""
