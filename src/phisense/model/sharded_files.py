"""Safetensors of sharded tensors: written by one process, one gathered tensor after another, and
read by each process as far as it holds them. So nobody holds a whole model, or its moments.

The files are those that `safetensors.torch.save_file` writes: any number of processes reads them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .sharding import whole

#: The format's names of the number formats that are trained or counted in.
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
}


def write_gathered(tensors: Mapping[str, torch.Tensor], path: Path | None) -> None:
    """Gather each tensor in turn, and write all of them to `path`, or nothing if it is None. A
    collective if any is sharded.
    """
    # by size of a number and by name, as safetensors sorts them
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    if path is None:
        for name in names:
            whole(tensors[name].detach())
        return
    header: dict[str, Any] = {}
    end = 0
    for name in names:
        start, end = end, end + tensors[name].numel() * tensors[name].element_size()
        header[name] = {
            "dtype": _DTYPES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    document = json.dumps(header, separators=(",", ":")).encode()
    document += b" " * (-len(document) % 8)
    with path.open("wb") as file:
        file.write(len(document).to_bytes(8, "little") + document)
        for name in names:
            gathered = whole(tensors[name].detach()).cpu().contiguous()
            file.write(gathered.view(-1).view(torch.uint8).numpy().data)


def read_rows(file: Any, name: str, into: torch.Tensor, rows: slice) -> None:
    """Copy some rows of a tensor in an open safetensors file `into` another one; all of it if it
    has no dimensions.
    """
    if not into.ndim:
        into.copy_(file.get_tensor(name))
    elif rows.stop > rows.start:
        into.copy_(file.get_slice(name)[rows])
