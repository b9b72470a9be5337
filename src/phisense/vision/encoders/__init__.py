"""Vision encoders: an image -> features `(P, D)`, from a hidden layer before any projector.

base.py                      `EncoderKind`: what is to be known of a kind of encoder; `ENCODERS`
clip.py siglip.py dinov2.py  one kind each; none imports torch, so that folders can be judged first
image_size.py                the side of the images that a part reads; imports no torch, either
positions.py                 the table of positions, resized to that side
loading.py                   configuration, weights and image processor of a part
encode.py                    `Encoder`: images -> features, and the facts that determine them
"""
