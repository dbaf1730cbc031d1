"""The program ``lightning-snn`` as ``python -m lightning_snn``."""

from lightning_snn.cli.program import main

if __name__ == "__main__":
    main()
