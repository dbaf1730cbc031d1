"""A spiking Bayesian network learns event-camera gestures."""

import os

# must precede the import of torch: large blocks of memory then come in large pages, and the CPU runs nearly twice as fast
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

from lightning_snn.cli import main

DEFAULTS = {
    "data": "Gestures",
    "network": "EventConvNet",
    "method": "SpikingBayes",
    "model.learning_rate": 2e-3,
    "model.lr_scheduler": "cosine",
    "trainer.max_epochs": 20,
    "trainer.log_every_n_steps": 10,
}

if __name__ == "__main__":
    main(__file__, DEFAULTS)
