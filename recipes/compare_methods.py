"""All learning rules side by side: one network, one data set, the same budget in optimizer steps and in seconds.

A rule that cannot train the network or the data is listed with the reason. --rules chooses rules, --data the data:
--data NMNIST --data.root FOLDER, --data MNIST --data.root mnist.npz, --data SpokenDigits, or a data module of your own.
--seconds 10 adds the comparison in seconds. A comparison that was stopped goes on with --output FOLDER. Recordings are
not augmented, because expectation propagation needs the same samples in each batch in every epoch.
"""

from lightning_snn.cli.comparison import compare

DEFAULTS = {
    "data": "Gestures",
    "network": "MLP",
    "method": "SurrogateGradient",
    "model.lr_scheduler": "cosine",
    "trainer.devices": 1,
    "trainer.enable_model_summary": False,
    "trainer.log_every_n_steps": 50,
    "steps": 600,
}
RULES = {
    "SurrogateGradient": {"method": "SurrogateGradient"},
    "RateBackprop": {"method": "RateBackprop"},
    "RateBackprop4": {"method": "RateBackprop", "method.window": 4},
    "OnlineThroughTime": {"method": "OnlineThroughTime"},
    "SLTT": {"method": "OnlineThroughTime", "method.trace": False},
    "EProp": {"method": "EProp"},
    "EPropRandom": {"method": "EProp", "method.feedback": "random"},
    "NoisySpikes": {"method": "NoisySpikes", "method.samples": 8},
    "SpikingBayes": {"method": "SpikingBayes", "method.samples": 8},
    "TimeToFirstSpike": {"method": "TimeToFirstSpike"},
    "ExpectationPropagation": {"method": "ExpectationPropagation", "data.fixed_batches": True},
}
# inputs within [0, 1], as time to first spike needs them, and without random changes
_EVENTS = {"data.max_count": 1, "data.max_shift": 0}
# defaults per class, which the command line overrides
PRESETS = {
    "MLP": {"network.hidden": [128]},
    "Gestures": {**_EVENTS, "data.mirror": False, "data.train_subjects": 32},
    "NMNIST": {**_EVENTS, "data.size": 17, "data.val_fraction": 0.2},
    "DVSGesture": {**_EVENTS},
    "MNIST": {"data.time_steps": 4},
    "SHD": {"data.max_count": 1},
    "SpokenDigits": {"data.max_count": 1},
}

if __name__ == "__main__":
    compare(__file__, DEFAULTS, RULES, PRESETS)
