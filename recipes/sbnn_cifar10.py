"""A residual spiking network learns CIFAR-10 without normalization; --data.root is the image folder or .npz file."""

from lightning_snn.cli import main

DEFAULTS = {
    "data": "CIFAR10",
    "data.time_steps": 4,
    "data.mean": [0.49, 0.48, 0.45],
    "data.std": [0.25, 0.24, 0.26],
    "network": "ResidualConvNet",
    "network.neuron": {"class_path": "LIF", "init_args": {"beta": 0.5}},
    "network.stem_stride": 2,  # a quarter of the cost, so that two CPU cores are enough
    "method": "SpikingBayes",
    "model.learning_rate": 3e-3,
    "model.lr_scheduler": "cosine",
    "trainer.max_epochs": 8,  # sized for a subset of 6,000 images; use more on the whole set, and augmentation
    "trainer.gradient_clip_val": 1.0,
    "trainer.log_every_n_steps": 10,
}
# defaults per method, which the command line overrides
PRESETS = {
    "SpikingBayes": {
        "method.lam": 1.0,  # many layers, so the estimator of least variance
        "method.gain": 1.0,  # images are dense, and input currents grow along the residual stream
        "method.kappa": 0.3,
        "method.prior_scale": 0.5,
        "method.kl_weight": 0.03,
        "method.mean_epochs": 4,  # of 8
        "method.samples": 8,  # in one batch; with few data their mean is better than the posterior mean
    },
}

if __name__ == "__main__":
    main(__file__, DEFAULTS, PRESETS)
