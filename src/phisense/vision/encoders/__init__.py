"""Vision encoders: an image -> features `(P, D)`, from a hidden layer before any projector.

base.py                      `EncoderKind`: what is to be known of a kind of encoder; `ENCODERS`
clip.py siglip.py dinov2.py  one kind each; none imports torch, so that folders can be judged first
loading.py                   configuration, weights and image processor of a part
encode.py                    `Encoder`: images -> features, and the facts that determine them
"""
