"""Which quantization is kept, and what the importance matrix does to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from phisense.cli.export import _print_what_holds
from phisense.pipeline.progress import ignore
from phisense.pipeline.results import ExportResult, FileAgreement
from phisense.publish import candidates, gguf_agreement
from phisense.publish.candidates import choose
from phisense.publish.importance import ImportanceMeter
from phisense.publish.quantization import QUANTIZATIONS, quantize

EQUAL = FileAgreement(positions=9, top1=1.0, kl=0.0, same_answers=1.0)


class Layer(torch.nn.Module):
    """Two matrices and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(4)
        self.up = torch.nn.Linear(4, 6, bias=False)
        self.down = torch.nn.Linear(6, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.up(self.norm(x)).relu())


def test_importance_is_the_mean_square_of_the_inputs(compute: str) -> None:
    torch.manual_seed(0)
    dtype = getattr(torch, compute)
    layer = Layer().to(dtype)
    meter = ImportanceMeter([layer], {"norm": "n", "up": "ffn_up", "down": "ffn_down"})
    batches = [torch.randn(2, 5, 4, dtype=dtype), torch.randn(1, 3, 4, dtype=dtype)]
    with meter.measuring(), torch.no_grad():
        for one in batches:
            layer(one)
    layer(torch.full((1, 1, 4), 1e4, dtype=dtype))  # behind the block: it does not count
    found = meter.matrix()
    assert set(found) == {"blk.0.ffn_up.weight", "blk.0.ffn_down.weight"}
    with torch.no_grad():
        rows = torch.cat([layer.norm(one).flatten(0, -2) for one in batches])
        right = rows.double().square().mean(0).float().numpy()
    assert np.allclose(found["blk.0.ffn_up.weight"], right, rtol=1e-6)


def _file(folder: Path, values: np.ndarray[Any, Any]) -> Path:
    """A Llama of one layer, all of whose matrices are `values`."""
    import gguf

    path, width = folder / "f16.gguf", values.shape[1]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(1)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(width)
    writer.add_block_count(1)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"t{i}".encode() for i in range(width)])
    writer.add_token_types([1] * width)
    writer.add_token_merges(["t 0"])
    names = [f"attn_{one}" for one in ("q", "k", "v", "output")]
    names += [f"ffn_{one}" for one in ("gate", "up", "down")]
    for name in ("token_embd", *(f"blk.0.{one}" for one in names)):
        writer.add_tensor(f"{name}.weight", values.astype(np.float16))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.slow
@pytest.mark.parametrize("width", [256, 96])  # Q4_K, and Q5_0 in its place
def test_columns_that_matter_keep_more(width: int, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    import gguf

    rng = np.random.default_rng(0)
    values = rng.normal(size=(width, width)).astype(np.float32)
    source = _file(tmp_path, values)
    weights = np.ones(width, np.float32)
    weights[::8] = 1e4
    name = "blk.0.attn_q.weight"

    def error(importance: Any, path: Path) -> float:
        quantize(source, path, "q4_k_m", 1, importance)
        (tensor,) = (one for one in gguf.GGUFReader(path).tensors if one.name == name)
        assert tensor.tensor_type.name == ("Q4_K" if width == 256 else "Q5_0")
        off = gguf.dequantize(tensor.data, tensor.tensor_type) - values
        return float((off**2 * weights).mean())

    plain = error(None, tmp_path / "plain.gguf")
    assert error({name: weights}, tmp_path / "weighted.gguf") < 0.8 * plain
    assert error({name: np.ones_like(weights)}, tmp_path / "even.gguf") > 0.8 * plain


@pytest.mark.parametrize(
    ("asked", "same", "kept", "holds"),
    [
        ("auto", {"q4_k_m": 0.9}, "q4_k_m", "q4_k_m"),
        ("auto", {"q4_k_m": 0.6, "q5_k_m": 0.86}, "q5_k_m", "q5_k_m"),
        ("auto", {"q4_k_m": 0.6, "q5_k_m": 0.6, "q6_k": 0.8, "q8_0": 0.94}, "f16", "f16"),
        ("q4_k_m", {"q4_k_m": 0.85}, "q4_k_m", "q4_k_m"),
        ("q4_k_m", {"q4_k_m": 0.6, "q5_k_m": 0.8, "q6_k": 0.9}, "q4_k_m", "q6_k"),
        ("q8_0", {"q8_0": 0.9}, "q8_0", "f16"),
        ("f16", {}, "f16", "f16"),
    ],
)
def test_what_is_kept_and_what_is_named(
    asked: str,
    same: dict[str, float],
    kept: str,
    holds: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "model-f16.gguf").touch()
    left = dict(same)

    class Comparison:
        f16, calibration = EQUAL, 3

        @classmethod
        def of_f16(cls, *_: object) -> Comparison:
            return cls()

        def quantized(self, quant: str, _: object) -> FileAgreement:
            (tmp_path / f"model-{quant}.gguf").touch()
            return FileAgreement(positions=9, top1=0.9, kl=0.1, same_answers=left.pop(quant))

    monkeypatch.setattr(candidates, "_Comparison", Comparison)
    chosen = choose(tmp_path, tmp_path, asked, Any, gguf_agreement.Asked(([], []), ([], []), ""), ignore)  # type: ignore[arg-type]  # fmt: skip  # noqa: E501
    assert not left, "what was measured"
    assert (chosen.quant, chosen.holds) == (kept, holds)
    assert [one.name for one in tmp_path.iterdir()] == [f"model-{kept}.gguf"]
    assert {**same, "f16": 1.0} == {
        name: one.same_answers for name, one in chosen.agreements.items()
    }
    result = ExportResult(
        quant=chosen.quant,
        holds=chosen.holds,
        min_same_answers=QUANTIZATIONS[chosen.quant].min_same_answers,
        questions=9,
        mmproj=False,
        mmproj_why_not=None,
        mmproj_caution=None,
        f16=EQUAL,
        bytes={},
        extra={name: one.to_dict() for name, one in chosen.agreements.items() if name != "f16"},
    )
    assert ExportResult.from_dict(result.to_dict()).agreements.keys() == chosen.agreements.keys()
    _print_what_holds(result)
    told = "".join(capsys.readouterr().out.split())
    assert (f"--quant{holds}" in told) == (kept != holds)
