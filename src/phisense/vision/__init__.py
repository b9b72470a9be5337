"""Images: decoding, checks, vision encoders and the feature store."""
