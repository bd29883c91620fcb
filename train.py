"""The command line from a checkout: ``python train.py fit --config configs/quickstart.yaml``."""

from command_line import main, run

__all__ = ["main"]

if __name__ == "__main__":
    run()
