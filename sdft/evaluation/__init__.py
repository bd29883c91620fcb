"""What is measured of a run: accuracy, retention, capabilities, cost."""
