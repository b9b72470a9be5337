"""The practice world: a synthetic data set, small pretrained parts, and the demo."""
