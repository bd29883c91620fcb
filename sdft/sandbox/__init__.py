"""Run code that a model wrote, isolated from the rest of the system."""
