"""The feature store: every distinct picture encoded once, on disk.

    features-00000.safetensors   the rows of up to `shard` pictures; its metadata says which, by what encoder, in what format
    ...
    pictures.json                where each name is: [shard, row]; names of equal pictures share a row
    manifest.json                written last: what the encoder was, shapes, and the sha256 of every file

formats.py   how a picture's features lie on disk      writing.py    names -> shards, on one or several processes
reading.py   random access, verified on first use      planning.py   what each format would cost
"""

from .planning import plan
from .reading import FeatureStore
from .writing import encode_pictures

__all__ = ["FeatureStore", "encode_pictures", "plan"]
