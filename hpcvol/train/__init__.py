"""From a configuration to a trained model: the Trainer, checkpoints and metrics."""
