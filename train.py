"""The command line from a checkout: ``python train.py fit --config configs/quickstart.yaml``."""

from command_line import run

if __name__ == "__main__":
    run()
