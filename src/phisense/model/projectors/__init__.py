"""Projectors: image features `(N, P, D)` -> image tokens `(N, P', H)`, as wide as embeddings.

recipe                       native class                        image tokens of 24 x 24 patches
kind linear or mlp           LlavaForConditionalGeneration       576
kind mlp, pool 2 or 3        AyaVisionForConditionalGeneration   144 or 64; initialized to the
                                                                 average of the merged patches
kind pixel_shuffle           the same                            the same; random initialization
kind mlp, nested [1, 2, 4]   LlavaForConditionalGeneration       576, 144 or 36, chosen at run time

LLaVA's projector has one or two layers and no native class offers more without other parts (Janus's
brings an image generator along), so `mlp` means two. Nested training is that of Cai et al. 2024
(Matryoshka Multimodal Models, arXiv:2405.17430): the patches are averaged before the projector,
over squares whose side is drawn for each sample, and one checkpoint serves every side.

base.py                           `ProjectorKind`, `NativeModel`; `PROJECTORS`
linear.py mlp.py pixel_shuffle.py one kind each; none imports torch, so that recipes can ask them
native.py                         the two native models, LLaVA and Aya Vision
config.py                         the native configuration, class and processor
weights.py                        initial weights, and those of a model folder
image_tokens.py                   how many image tokens an image takes; average pooling
"""
