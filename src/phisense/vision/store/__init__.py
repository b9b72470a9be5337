"""The feature store: every distinct image encoded once, on disk.

    features-00000.safetensors   the rows of up to `shard` images; its metadata has each row's
                                 image digest and checksum
    ...
    pictures.json                name -> [shard number, row, digest of the image]; names of
                                 identical images share a row
    manifest.json                written last: the encoder's facts, shapes, and the sha256 of every
                                 file

formats.py   on-disk formats of features               contents.py   reads and validates a store's
                                                                     folder; never writes
shards.py    one file, its rows and their checksums    writing.py    names -> shards, on one or
                                                                     several processes
digests.py   digests of image files                    locking.py    one writer at a time, cleanup,
                                                                     replacing a store
reading.py   random access, verified on first use      planning.py   cost of each format
"""

from .planning import plan_store
from .reading import FeatureStore
from .writing import encode_images

__all__ = ["FeatureStore", "encode_images", "plan_store"]
