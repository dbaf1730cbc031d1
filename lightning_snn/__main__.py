"""Tools for files, such as ``python -m lightning_snn convert network.nir network.ckpt``."""

from lightning_snn.cli.convert import run_command

if __name__ == "__main__":
    run_command()
