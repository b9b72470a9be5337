"""The base in NF4 with its adapter beside it: how a merged folder is opened in 4 bits and loses
nothing of what was trained.

QLoRA trains B A beside a base that lies in NF4. The merged weights, quantized on the same grid,
snap back to the base wherever the change is smaller than half a step. So a merged folder keeps

    four_bit/beside.safetensors     of each language matrix, under its name with "language_model.":
        NAME.lora_A, NAME.lora_B    the adapter, in the folder's dtype; LoRA's factor is in B
        NAME.weight.*               the base's scales as bitsandbytes stores them, without the codes
        NAME.patch_at, NAME.patch   codes that the merged weights do not tell (see nf4_grid.py)
    its metadata                    digests of the file's own tensors, the codes and the merged
                                    weights

and `load_beside` finds the codes again in the merged weights less the adapter. Transformers, vLLM
and llama.cpp's converter do not look into the folder: to them the model is the merged one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ..errors import ArtifactError, PhisenseError
from ..opening.files import cached_sha256, check_regular_file
from ..opening.headers import weight_files
from ..opening.shape_checks import normalize_weight_name
from ..parts import load_weights
from .nf4_grid import codes_on_grid, quant_state
from .quantized import four_bit_layers, tensor_bytes

BESIDE_FILE = Path("four_bit") / "beside.safetensors"
_FORMAT = "1"
_TENSORS, _CODES, _WEIGHTS = "tensors", "codes", "merged_weights"  # keys of the metadata
_LANGUAGE = "language_model."
_AGAIN = "Run phisense merge RUN again"

Adapter = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""A `(r, K)` and B `(N, r)` of each adapted matrix, by its name in the language part."""


@dataclass(frozen=True, slots=True)
class _Layer:
    """What the file holds of one matrix."""

    stats: dict[str, torch.Tensor] = field(default_factory=dict)
    parts: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def adapter(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """A and B; None for a matrix without an adapter."""
        return (self.parts["lora_A"], self.parts["lora_B"]) if "lora_A" in self.parts else None

    def codes(self, weight: torch.Tensor) -> torch.Tensor:
        """The base's packed codes, found in the merged `weight` `(N, K)`."""
        codes = codes_on_grid(weight, quant_state(self.stats), self.adapter)
        if "patch_at" in self.parts:
            codes[self.parts["patch_at"], 0] = self.parts["patch"]
        return codes


class AdapterBeside(nn.Module):
    """A 4-bit layer and the adapter beside it: x -> layer(x) + B A x. For inference."""

    def __init__(self, layer: nn.Module, a: torch.Tensor, b: torch.Tensor) -> None:
        super().__init__()
        self.base_layer = layer
        self.lora_A = nn.Parameter(a, requires_grad=False)
        self.lora_B = nn.Parameter(b, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Product of `x` `(..., K)` and the adapted weight, `(..., N)`."""
        inner = nn.functional.linear(x.to(self.lora_A.dtype), self.lora_A)
        out: torch.Tensor = self.base_layer(x)
        return out + nn.functional.linear(inner, self.lora_B).to(out.dtype)


@torch.no_grad()
def read_adapter(model: Any) -> Adapter:
    """The adapter of a model with PEFT's LoRA layers, of its language part only; in float32 on the
    CPU.
    """
    return {
        name.removeprefix("model."): (
            module.lora_A["default"].weight.detach().float().cpu(),
            module.lora_B["default"].weight.detach().float().cpu() * module.scaling["default"],
        )
        for name, module in model.named_modules()
        if hasattr(module, "lora_A") and _LANGUAGE in name
    }


@torch.no_grad()
def write_beside(folder: Path, base: Any, adapter: Adapter, dtype: torch.dtype) -> None:
    """Write the file into a merged `folder`, whose weights are `base` and `adapter` merged.

    `base` is the language part in NF4 as in training, without an adapter; `dtype` is the folder's.
    """
    stored = _stored_names(folder)
    tensors: dict[str, torch.Tensor] = {}
    digests: dict[str, str] = {}
    for inner, layer in four_bit_layers(base):
        name = _LANGUAGE + inner.removeprefix("model.")
        one = _Layer({key: value.cpu() for key, value in _stats(layer).items()})
        if name in adapter:
            a, b = (part.to(dtype).contiguous() for part in adapter[name])
            one.parts.update(lora_A=a, lora_B=b)
        codes = layer.weight.data.detach().cpu()
        with safe_open(stored[f"{name}.weight"][0], "pt") as file:
            found = one.codes(file.get_tensor(stored[f"{name}.weight"][1]))
        if len(at := (found != codes)[:, 0].nonzero()[:, 0]):
            one.parts.update(patch_at=at, patch=codes[at, 0])
        tensors |= {f"{name}.weight.{key}": value for key, value in one.stats.items()}
        tensors |= {f"{name}.{key}": value for key, value in one.parts.items()}
        digests[name] = _sha256(codes)
    path = folder / BESIDE_FILE
    path.parent.mkdir()
    facts = {
        "format": _FORMAT,
        _TENSORS: _joined({name: _sha256(one) for name, one in tensors.items()}),
        _CODES: _joined(digests),
        _WEIGHTS: _weights_digest(folder),
    }
    save_file(tensors, path, metadata=facts)


def has_beside(folder: Path) -> bool:
    """Whether a model folder holds an adapter for opening in 4 bits."""
    return (folder / BESIDE_FILE).is_file()


@torch.no_grad()
def load_beside(
    model_class: Any,
    folder: Path,
    config: Any,
    quantization: Any,
    device: torch.device,
    dtype: torch.dtype,
) -> Any:
    """The folder's model with its base in NF4 as in training, and the adapter beside it.

    `quantization` is the configuration of the 4-bit layers, `dtype` that of all other weights.
    Raises ArtifactError for a file that is damaged or belongs to other merged weights.
    """
    path = folder / BESIDE_FILE
    with _readable(path):
        layers, facts = _read(path, folder)
        if facts.get(_WEIGHTS) != _weights_digest(folder):
            raise _strange(path, "the digest of other merged weights than the folder's")
        state, digests = _state_dict(folder, layers, dtype)
        if _joined(digests) != facts.get(_CODES):
            raise _strange(path, "an adapter that the merged weights do not hold")
    # tells transformers that the weights are in 4 bits
    config.quantization_config = quantization.to_dict()
    model = load_weights(
        model_class, folder, config=config, state_dict=state, dtype=dtype, device_map={"": device}
    )
    del state
    held = dict(four_bit_layers(model))
    if {name.removeprefix("model.") for name in held} != layers.keys():
        raise _strange(path, "other matrices than the model's")
    for name, layer in held.items():
        adapter = layers[name.removeprefix("model.")].adapter
        if adapter is not None:
            beside = (part.to(device, dtype) for part in adapter)
            model.set_submodule(name, AdapterBeside(layer, *beside))
    return model.eval()


def _stats(layer: Any) -> dict[str, torch.Tensor]:
    """The quantization state in bitsandbytes' stored form, the dtype that it dequantizes to left at
    float32.
    """
    state = layer.weight.quant_state
    dtype, state.dtype = state.dtype, torch.float32
    found: dict[str, torch.Tensor] = state.as_dict(packed=True)
    state.dtype = dtype
    return found


def _stored_names(folder: Path) -> dict[str, tuple[Path, str]]:
    """File and stored name of every weight, by its name in the normalized form."""
    found = {}
    for path in weight_files(folder):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118, it is no dict
                found[normalize_weight_name(name)] = (path, name)
    return found


def _read(path: Path, folder: Path) -> tuple[dict[str, _Layer], dict[str, str]]:
    """The layers and the metadata of the file."""
    check_regular_file(path, folder)
    layers: dict[str, _Layer] = {}
    digests: dict[str, str] = {}
    with safe_open(path, "pt") as file:
        facts = file.metadata() or {}
        if facts.get("format") != _FORMAT:
            raise _strange(path, f"format {facts.get('format')}", wanted=f"format {_FORMAT}")
        for name in file.keys():  # noqa: SIM118, it is no dict
            layer, inner, key = name.partition(".weight.")
            if not inner:
                layer, _, key = name.rpartition(".")
            one = layers.setdefault(layer, _Layer())
            tensor = (one.stats if inner else one.parts)[key] = file.get_tensor(name)
            digests[name] = _sha256(tensor)
    if facts.get(_TENSORS) != _joined(digests):
        raise ArtifactError(f"{path} is damaged", got="other tensors than it tells of", do=_AGAIN)
    return layers, facts


def _state_dict(
    folder: Path, layers: Mapping[str, _Layer], dtype: torch.dtype
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """All weights under their stored names, those of `layers` as bitsandbytes stores 4-bit ones;
    and the digests of the codes. One matrix is in memory unquantized at a time.
    """
    state: dict[str, torch.Tensor] = {}
    digests: dict[str, str] = {}
    for weight_file in weight_files(folder):
        with safe_open(weight_file, "pt") as file:
            for name in file.keys():  # noqa: SIM118, it is no dict
                weight = file.get_tensor(name)
                layer = normalize_weight_name(name).removesuffix(".weight")
                if layer not in layers:
                    state[name] = weight.to(dtype) if weight.is_floating_point() else weight
                    continue
                codes = layers[layer].codes(weight)
                digests[layer] = _sha256(codes)
                state[name] = codes
                state |= {f"{name}.{key}": one for key, one in layers[layer].stats.items()}
    return state, digests


def _weights_digest(folder: Path) -> str:
    return _joined({path.name: cached_sha256(path) for path in weight_files(folder)})


def _joined(digests: Mapping[str, str]) -> str:
    lines = (f"{name} {digest}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _sha256(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor_bytes(tensor)).hexdigest()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns what any reader says of a damaged file into an ArtifactError."""
    try:
        yield
    except PhisenseError:
        raise
    # bitsandbytes, torch and safetensors raise many kinds for tensors of other shapes and types
    except (SafetensorError, OSError, AssertionError, LookupError, RuntimeError, TypeError,
            ValueError) as error:  # fmt: skip
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise ArtifactError(f"{path} cannot be read", got=said, do=_AGAIN) from error


def _strange(path: Path, got: str, wanted: str | None = None) -> ArtifactError:
    return ArtifactError(
        f"{path} does not belong to this model",
        got=got,
        wanted=wanted or "what phisense merge wrote with the merged weights",
        do=f"{_AGAIN}, or leave out --quantize",
    )
