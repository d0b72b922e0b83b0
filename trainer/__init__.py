"""Turns outcomes into a dataset and models, evaluates, promotes or rejects them. Its messages are in proto/trainer.proto."""
