"""Model folders as somebody with bad intentions, or a bad disk, would make them: a good one with
one thing changed.

What may come of each: it is refused with one of phisense's errors, or opens and answers as the good
one does. Only where a folder has no manifest, and a value in a configuration or bytes of a weight
were exchanged for others that a model may well have, another model is right, too: nothing in the
folder says that it is not the one that was meant.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import re
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

JSON_FILES = (
    *(
        "config.json",
        "generation_config.json",
        "processor_config.json",
        "tokenizer_config.json",
        "tokenizer.json",
    ),
    *("preprocessor_config.json", "vocabulary.json"),
)
ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    -1,
    0,
    1,
    2,
    3,
    7,
    10**6,
    10**9,
    2**31,
    2**60,
    10**30,
    1.5,
    -0.5,
    1e-300,
    1e300,
    "",
    "x",
    "auto",
    "../x",
    "/etc/passwd",
    "x" * 10_000,
    [],
    [1],
    ["x"],
    [[[[]]]],
    [0] * 100_000,
    {},
    {"a": {"b": []}},
    {"type": "x"},
    "<|end|>",
    "\u0000",
    "🙂",
)
RAW = (
    "NaN",
    "Infinity",
    "1e999",
    "-",
    "",
    "[" * 5000 + "]" * 5000,
    "{",
    "nul",
    '"\\ud800"',
    "9" * 5000,
    "1" + "0" * 400,
    "'x'",
    "//",
    '{"a":1,"a":2}',
)
#: Keys that are in no good folder, and what they would do.
ADDED: tuple[tuple[str, str, Any], ...] = (
    ("config.json", "auto_map", {"AutoConfig": "evil.C", "AutoModelForImageTextToText": "evil.M"}),
    ("config.json", "_attn_implementation", "kernels-community/flash-attn"),
    ("config.json", "attn_implementation", "flash_attention_2"),
    ("config.json", "text_config._attn_implementation", "someone/kernel@main:attention"),
    ("config.json", "vision_config.attn_implementation", "flex_attention"),
    ("config.json", "quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    ("config.json", "quantization_config", {"quant_method": "gptq", "bits": 4}),
    ("config.json", "text_config.quantization_config", {"quant_method": "fp8"}),
    ("config.json", "configuration_files", ["config.5.0.0.json"]),
    ("config.json", "transformers_weights", "other.safetensors"),
    ("config.json", "transformers_weights", "../outside.safetensors"),
    ("config.json", "num_labels", 10**9),
    ("config.json", "text_config.num_labels", 2**40),
    ("config.json", "device_map", "disk"),
    ("config.json", "torch_dtype", "float8_e4m3fn"),
    ("config.json", "dtype", "int8"),
    ("config.json", "output_attentions", True),
    ("config.json", "text_config.head_dim", 10**9),
    ("config.json", "text_config.partial_rotary_factor", 10**9),
    (
        "config.json",
        "text_config.rope_scaling",
        {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]},
    ),
    ("config.json", "text_config.layer_types", ["full_attention"] * 100_000),
    ("config.json", "nested_pooling", [0]),
    ("generation_config.json", "num_beams", 10**6),
    ("generation_config.json", "max_new_tokens", 10**12),
    ("generation_config.json", "max_time", -1),
    ("generation_config.json", "suppress_tokens", list(range(768))),
    ("generation_config.json", "cache_implementation", "offloaded"),
    ("generation_config.json", "forced_eos_token_id", 5),
    ("generation_config.json", "watermarking_config", {"greenlist_ratio": "x"}),
    ("tokenizer_config.json", "auto_map", {"AutoTokenizer": ["evil.T", None]}),
    ("tokenizer_config.json", "tokenizer_class", "EvilTokenizer"),
    ("tokenizer_config.json", "tokenizer_class", "RagTokenizer"),
    ("tokenizer_config.json", "fast_tokenizer_files", ["tokenizer.4.0.0.json"]),
    ("tokenizer_config.json", "tokenizer_file", "/etc/passwd"),
    ("tokenizer_config.json", "vocab_file", "../vocab.json"),
    (
        "tokenizer_config.json",
        "added_tokens_decoder",
        {str(i): {"content": f"<{i}>"} for i in range(3000)},
    ),
    ("tokenizer_config.json", "chat_template", "{% for i in range(10**12) %}x{% endfor %}"),
    ("tokenizer_config.json", "chat_template", "{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    ("processor_config.json", "auto_map", {"AutoProcessor": "evil.P"}),
    ("processor_config.json", "processor_class", "Florence2Processor"),
    ("processor_config.json", "image_processor.size", {"height": 10**6, "width": 10**6}),
    ("processor_config.json", "image_processor.crop_size", {"height": 8, "width": 8}),
    ("processor_config.json", "image_processor.image_std", [0, 0, 0]),
    ("processor_config.json", "image_processor.image_processor_type", "EvilImageProcessor"),
    (
        "tokenizer.json",
        "pre_tokenizer",
        {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False},
    ),
    (
        "tokenizer.json",
        "normalizer",
        {"type": "Replace", "pattern": {"Regex": "(x+x+)+y"}, "content": ""},
    ),
    (
        "tokenizer.json",
        "normalizer",
        {"type": "Replace", "pattern": {"String": " "}, "content": "x" * 1_000_000},
    ),
    ("tokenizer.json", "normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
    (
        "tokenizer.json",
        "truncation",
        {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0},
    ),
    (
        "tokenizer.json",
        "padding",
        {
            "strategy": {"Fixed": 10**9},
            "direction": "Left",
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "x",
        },
    ),
    ("tokenizer.json", "model.dropout", 0.9),
    ("tokenizer.json", "model.type", "Unigram"),
    ("tokenizer.json", "model.merges", [["nothing", "known"]]),
)


#: As `ADDED`, for a tower, a Whisper or a converted one.
ADDED_TO_PARTS: tuple[tuple[str, str, Any], ...] = (
    ("preprocessor_config.json", "image_std", [0, 0, 0]),
    ("preprocessor_config.json", "image_std", None),
    ("preprocessor_config.json", "image_mean", "x"),
    ("preprocessor_config.json", "resample", 99),
    ("preprocessor_config.json", "feature_size", 128),
    ("preprocessor_config.json", "chunk_length", 10**6),
    ("preprocessor_config.json", "n_fft", 10**9),
    ("preprocessor_config.json", "hop_length", 1),
    ("preprocessor_config.json", "sampling_rate", 8000),
    ("config.json", "encoder_layers", "x"),
    ("config.json", "decoder_layers", 10**6),
    ("config.json", "suppress_ids", [10**9]),
    ("config.json", "suppress_ids", "x"),
    ("config.json", "lang_ids", [-1, 10**9]),
    ("config.json", "alignment_heads", [[99, 99]]),
    ("generation_config.json", "suppress_tokens", [10**9]),
    ("generation_config.json", "lang_to_id", {"<|de|>": 10**9}),
    ("generation_config.json", "alignment_heads", [["x"]]),
)  # fmt: skip


#: Keys that another model may well have.
MAY_DIFFER = (
    *(
        "head_dim",
        "partial_rotary_factor",
        "image_std",
        "truncation",
        "dropout",
        "chunk_length",
        "hop_length",
        "n_fft",
    ),
    *("suppress_tokens", "lang_to_id", "alignment_heads", "suppress_ids", "lang_ids"),
)


@dataclass(frozen=True)
class Case:
    """`manifest` says what became of it: kept as it was, made again by who changed the folder, or
    none.
    """

    number: int
    name: str
    manifest: str
    may_differ: bool


def hostile(good: Path, folder: Path, number: int, seed: int = 0) -> Case:
    """Writes the `number`th folder to `folder`, which is inside a folder of its own: what lies
    beside it may be named.
    """
    rng = random.Random(f"{seed} {number}")
    shutil.copytree(good, folder, copy_function=_link)
    kinds = (
        _value,
        _value,
        _raw,
        _added,
        _added,
        _bytes,
        _header,
        _header,
        _weights,
        _files,
        _files,
    )
    name, may_differ = kinds[number % len(kinds)](rng, folder, number // len(kinds))
    manifest = (
        rng.choice(("kept", "again", "none", "none"))
        if (folder / "manifest.json").is_file()
        else "none"
    )
    if manifest == "none":
        (folder / "manifest.json").unlink(missing_ok=True)
    elif manifest == "again":
        sign(folder)
    return Case(number, name, manifest, may_differ and manifest != "kept")


def _link(source: str, target: str) -> str:
    os.link(source, target)
    return target


def _write(path: Path, data: bytes | str) -> None:
    """A new file: the old one is the good folder's."""
    path.unlink(missing_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def sign(folder: Path) -> None:
    """Makes the manifest say what is there, whatever it is."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_bytes())
        files = [one for one in folder.rglob("*") if one.is_file() and one != path]
        told = {one.relative_to(folder).as_posix(): one.read_bytes() for one in files}
        manifest["files"] = {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in told.items()
        }
        _write(path, json.dumps(manifest))
    except (ValueError, TypeError, OSError):  # it was the manifest that was changed
        return


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    if isinstance(value, dict) and len(value) < 200:
        for key, one in value.items():
            found += _leaves(one, (*path, key))
    elif isinstance(value, list) and len(value) < 40:
        for i, one in enumerate(value):
            found += _leaves(one, (*path, i))
    return found


def _put(value: Any, path: tuple[Any, ...], new: Any) -> None:
    for key in path[:-1]:
        value = value.setdefault(key, {}) if isinstance(value, dict) else value[key]
    value[path[-1]] = new


def _value(rng: random.Random, folder: Path, _: int) -> tuple[str, bool]:
    file = rng.choice(
        (*JSON_FILES[:4], "config.json", "config.json", "tokenizer.json", "manifest.json")
    )
    if not (folder / file).is_file():
        file = rng.choice(
            ("config.json", *(name for name in JSON_FILES[5:] if (folder / name).is_file()))
        )
    told = json.loads((folder / file).read_bytes())
    where, new = rng.choice(_leaves(told) or [(0,)]), rng.choice(ODD)
    _put(told, where, new)
    _write(folder / file, json.dumps(told))
    return f"{file} {'.'.join(map(str, where))} = {str(new)[:40]!r}", True


def _raw(rng: random.Random, folder: Path, _: int) -> tuple[str, bool]:
    file = rng.choice(
        [name for name in (*JSON_FILES, "manifest.json") if (folder / name).is_file()]
    )
    told = json.loads((folder / file).read_bytes())
    where, new = rng.choice(_leaves(told) or [(0,)]), rng.choice(RAW)
    _put(told, where, "<here>")
    _write(folder / file, json.dumps(told).replace('"<here>"', new))
    return f"{file} {'.'.join(map(str, where))} = raw {new[:20]}", True


def _added(rng: random.Random, folder: Path, number: int) -> tuple[str, bool]:
    whole = (folder / "processor_config.json").is_file()
    there = [
        one
        for one in (*ADDED, *(() if whole else 2 * ADDED_TO_PARTS))
        if (folder / one[0]).is_file()
    ]
    file, key, new = there[rng.randrange(len(there))]
    told = json.loads((folder / file).read_bytes())
    _put(told, tuple(key.split(".")), new)
    _write(folder / file, json.dumps(told))
    _write(
        folder / "evil.py",
        f"open({str(folder.parent / 'was-run')!r}, 'w').close()\nC = M = T = P = None\n",
    )
    if "files" in key:
        _write(folder / new[0], "{}")
    return f"{file} + {key} = {str(new)[:40]}", key.endswith(MAY_DIFFER)


def _bytes(rng: random.Random, folder: Path, _: int) -> tuple[str, bool]:
    path = rng.choice(
        sorted(
            one
            for one in folder.iterdir()
            if one.is_file() and one.name not in ("training.json", "merge_report.json")
        )
    )
    data = bytearray(path.read_bytes())
    way = rng.choice(("flip", "flip", "cut", "empty", "append", "zeros", "bom"))
    if way == "flip":
        for _ in range(rng.choice((1, 3, 2000))):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif way == "zeros":
        at = rng.randrange(len(data))
        data[at : at + 500] = bytes(len(data[at : at + 500]))
    else:
        data = {
            "cut": data[: rng.randrange(len(data))],
            "empty": bytearray(),
            "append": data + b"\0" * 9,
            "bom": b"\xef\xbb\xbf" + data,
        }[way]
    _write(path, bytes(data))
    return f"{path.name} {way}", True


def _split(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _join(path: Path, header: Any, data: bytes, length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    _write(path, struct.pack("<Q", len(text) if length is None else length) + text + data)


def _header(rng: random.Random, folder: Path, number: int) -> tuple[str, bool]:  # noqa: C901, a list of ways
    path = folder / "model.safetensors"
    if not path.is_file():
        return _model_bin(rng, folder)
    header, data = _split(path)
    names = [name for name in header if name != "__metadata__"]
    one, two = rng.sample(names, 2)
    way = (
        "2^60",
        "deep",
        "beyond",
        "overlap",
        "dtype",
        "shape",
        "missing",
        "extra",
        "exchanged",
        "list",
        "negative",
        "f8",
        "huge",
    )[number % 13]
    length = None
    if way == "2^60":
        length = rng.choice((2**60, 2**63, 2**32, 0, 1))
    elif way == "deep":
        header = b"[" * 100_000
    elif way == "beyond":
        header[one]["data_offsets"] = [len(data), len(data) + 8]
    elif way == "overlap":
        header[one]["data_offsets"] = header[two]["data_offsets"]
    elif way == "dtype":
        header[one]["dtype"] = rng.choice(("F64", "X", 3, None, "I32", "BOOL"))
    elif way == "shape":
        header[one]["shape"] = rng.choice(
            ([], [0], [2**62, 2**62], [-1], ["x"], None, [1] * 99, [*header[one]["shape"][::-1], 1])
        )
    elif way == "missing":
        del header[one]
    elif way == "extra":
        header["extra.weight"] = {
            "dtype": "U8",
            "shape": [8],
            "data_offsets": [len(data), len(data) + 8],
        }
        data += b"\0" * 8
    elif way == "exchanged":
        header[one], header[two] = header[two], header[one]
    elif way == "list":
        header = []
    elif way == "negative":
        header[one]["data_offsets"] = [-8, 0]
    elif way == "f8":
        header = {
            name: {**told, "dtype": "F8_E4M3"} if name != "__metadata__" else told
            for name, told in header.items()
        }
    elif way == "huge":
        header = {
            f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(200_000)
        }
    _join(path, header, data, length)
    return f"safetensors header {way} {one}", way == "exchanged"


def _model_bin(rng: random.Random, folder: Path) -> tuple[str, bool]:
    """CTranslate2's file: a number of the header, or one behind a name, is another."""
    path = folder / "model.bin"
    data = bytearray(path.read_bytes())
    names = [found.end() for found in re.finditer(rb"(?:encoder|decoder)/[a-z0-9_/]+\0", data)]
    way = rng.choice(("head", "rank", "dimension", "length", "numbers", "name", "scalar", "cut"))
    new = rng.choice((0, 1, 2, 3, 7, 64, 255, 2**16, 2**31 - 1, 2**32 - 1))
    at = rng.choice(names)
    if way == "head":
        at = rng.choice((0, 4, 18, 22))
        data[at : at + 4] = new.to_bytes(4, "little")
    elif way == "rank":
        data[at] = new % 256
    elif way in ("dimension", "length"):
        at += 1 if way == "dimension" else 2 + 4 * data[at]
        data[at : at + 4] = new.to_bytes(4, "little")
    elif way == "numbers":
        at += 200
        data[at : at + 64] = rng.choice((b"\xff\x7f" * 32, b"\0\x7c" * 32, rng.randbytes(64)))[
            : len(data) - at
        ]
    elif way == "name":
        data[at - 2] = rng.choice(b"xw0/")
    elif way == "scalar":
        at = data.index(b"num_heads\0", rng.choice((0, at % 1000))) + len(b"num_heads\0")
        data[at + 6] = new % 256
    else:
        del data[rng.randrange(len(data)) :]
    _write(path, bytes(data))
    return f"model.bin {way} {at} = {new}", way in ("numbers", "scalar")


def _weights(rng: random.Random, folder: Path, number: int) -> tuple[str, bool]:
    path = folder / "model.safetensors"
    if not path.is_file():
        return _model_bin(rng, folder)
    header, data = _split(path)
    told = header[rng.choice([name for name in header if name != "__metadata__"])]
    begin, end = told["data_offsets"]
    width = (end - begin) // max(1, _count(told["shape"]))
    at = begin + width * rng.randrange(max(1, _count(told["shape"])))
    what = ("nan", "inf", "random")[number % 3]
    infinite = b"\x80\x7f" if told["dtype"] == "BF16" else b"\0\x7c"
    spoilt = {"nan": {4: b"\0\0\xc0\x7f", 2: b"\xff\x7f"}, "inf": {4: b"\0\0\x80\x7f", 2: infinite}}
    number_bytes = spoilt.get(what, {}).get(width) or rng.randbytes(end - begin)
    at = at if what != "random" else begin
    changed = bytearray(data)
    changed[at : at + len(number_bytes)] = number_bytes
    _join(path, header, bytes(changed))
    return f"safetensors weights {what}", what == "random"


def _count(shape: list[int]) -> int:
    found = 1
    for one in shape:
        found *= one
    return found


class _Evil:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (os.mkdir, (str(self.trace),))


def _files(rng: random.Random, folder: Path, number: int) -> tuple[str, bool]:
    ways: tuple[Callable[[random.Random, Path], None], ...] = (
        _adapter,
        _pickle_alone,
        _pickle_beside,
        _index_outside,
        _index_absolute,
        _link_out,
        _pipe,
        _folder_for_file,
        _distributed,
        _link_loop,
        _template_file,
        _code,
        _two_halves,
        _manifest_outside,
        _device,
        _templates_folder,
        _index_missing,
        _adapter_empty,
        _second_config,
    )
    way = ways[number % len(ways)]
    if not (folder / "model.safetensors").is_file() and way not in _OF_ANY:
        return _model_bin(rng, folder)
    way(rng, folder)
    return way.__name__.strip("_"), False


def _adapter(rng: random.Random, folder: Path) -> None:
    """One that fits a model folder: transformers puts it on without a word."""
    facts = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 512,
        "target_modules": ["o_proj"],
        "base_model_name_or_path": str(folder),
    }
    _write(folder / "adapter_config.json", json.dumps(facts))
    header, _ = _split(folder / "model.safetensors")
    inner = next((name for name in header if name.endswith("o_proj.weight")), None)
    if inner is None:  # of a tower or a Whisper the file's name is enough
        return _write(folder / "adapter_model.safetensors", b"")
    width = header[inner]["shape"]
    name = "base_model.model.model.language_model.layers.0.self_attn.o_proj"
    blob = struct.pack("<f", 0.5) * (2 * width[1] + 2 * width[0])
    split = 8 * width[1]
    told = {
        f"{name}.lora_A.weight": {
            "dtype": "F32",
            "shape": [2, width[1]],
            "data_offsets": [0, split],
        },
        f"{name}.lora_B.weight": {
            "dtype": "F32",
            "shape": [width[0], 2],
            "data_offsets": [split, len(blob)],
        },
    }
    _join(folder / "adapter_model.safetensors", told, blob)
    return None


def _adapter_empty(rng: random.Random, folder: Path) -> None:
    _write(folder / "adapter_config.json", "{}")


def _evil_pickle(folder: Path) -> bytes:
    return pickle.dumps(_Evil(folder.parent / "was-run"))


def _pickle_alone(rng: random.Random, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    _write(
        folder / rng.choice(("pytorch_model.bin", "model.pt", "model.ckpt")), _evil_pickle(folder)
    )


def _pickle_beside(rng: random.Random, folder: Path) -> None:
    for name in ("pytorch_model.bin", "training_args.bin", "tf_model.h5"):
        _write(folder / name, _evil_pickle(folder))


def _outside(folder: Path) -> Path:
    """Weights outside that differ, so that it shows if they are read."""
    header, data = _split(folder / "model.safetensors")
    other = folder.parent / "outside.safetensors"
    _join(other, header, bytes(byte ^ 1 if i % 2 == 0 else byte for i, byte in enumerate(data)))
    return other


def _indexed(folder: Path, name: str) -> None:
    header, _ = _split(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {key: name for key in header if key != "__metadata__"}}
    _write(folder / "model.safetensors.index.json", json.dumps(index))


def _index_outside(rng: random.Random, folder: Path) -> None:
    _outside(folder)
    _indexed(folder, "../outside.safetensors")


def _index_absolute(rng: random.Random, folder: Path) -> None:
    _indexed(folder, str(_outside(folder)))


def _index_missing(rng: random.Random, folder: Path) -> None:
    _indexed(folder, "model-00001-of-00009.safetensors")


def _link_out(rng: random.Random, folder: Path) -> None:
    other = _outside(folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(other)


def _link_loop(rng: random.Random, folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(folder / "config.json")


def _device(rng: random.Random, folder: Path) -> None:
    name = rng.choice(JSON_FILES)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("/dev/zero")


def _pipe(rng: random.Random, folder: Path) -> None:
    name = rng.choice((*JSON_FILES, "model.safetensors", "chat_template.jinja"))
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)


def _folder_for_file(rng: random.Random, folder: Path) -> None:
    name = rng.choice((*JSON_FILES, "model.safetensors"))
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()


def _distributed(rng: random.Random, folder: Path) -> None:
    _write(folder / "shard-00000-model-00001-of-00001.safetensors", b"")
    _write(folder / ".metadata", _evil_pickle(folder))


def _template_file(rng: random.Random, folder: Path) -> None:
    _write(
        folder / "chat_template.jinja",
        "{% for i in range(10**12) %}{% for i in range(10**12) %}{% endfor %}{% endfor %}",
    )


def _templates_folder(rng: random.Random, folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "x.jinja").symlink_to("/dev/zero")


def _code(rng: random.Random, folder: Path) -> None:
    for name in (
        "modeling_llava.py",
        "configuration_llava.py",
        "custom_generate.py",
        "tokenization_llava.py",
    ):
        _write(folder / name, f"open({str(folder.parent / 'was-run')!r}, 'w').close()\n")


def _two_halves(rng: random.Random, folder: Path) -> None:
    """A second safetensors that no index names."""
    shutil.copy(folder / "model.safetensors", folder / "other.safetensors")


def _manifest_outside(rng: random.Random, folder: Path) -> None:
    if not (folder / "manifest.json").is_file():
        return _code(rng, folder)
    told = json.loads((folder / "manifest.json").read_bytes())
    told["files"][rng.choice(("../outside", "/etc/passwd", "a/../../x", "..\\x", ""))] = {
        "bytes": 1,
        "sha256": "0" * 64,
    }
    _write(folder / "manifest.json", json.dumps(told))
    return None


def _second_config(rng: random.Random, folder: Path) -> None:
    told = json.loads((folder / "config.json").read_bytes())
    _write(folder / "config.5.0.0.json", json.dumps(told | {"vision_feature_layer": -1}))
    _write(
        folder / "config.json", json.dumps(told | {"configuration_files": ["config.5.0.0.json"]})
    )


#: What needs no safetensors.
_OF_ANY = (_link_loop, _device, _pipe, _folder_for_file, _code, _adapter_empty)


# GGUF: what a header says is found by its own reader, and one place of it is changed.


def hostile_gguf(good: Path, folder: Path, number: int, seed: int = 0) -> Case:
    """As `hostile`, for a folder that phisense export wrote: its text model is changed."""
    rng = random.Random(f"{seed} gguf {number}")
    shutil.copytree(good, folder, copy_function=_link)
    path = folder / json.loads((good / "manifest.json").read_bytes())["about"]["file"]
    data = bytearray(path.read_bytes())
    places, begin = gguf_places(bytes(data))
    kind = number % 8
    may_differ = True
    if kind == 0:
        name = "flip header"
        for _ in range(rng.choice((1, 1, 4, 32))):
            data[rng.randrange(begin)] = rng.randrange(256)
    elif kind == 1:
        data = data[
            : rng.choice((rng.randrange(begin), rng.randrange(len(data)), 3, 24, len(data) - 1))
        ]
        name = "cut"
    elif kind == 2:
        at = begin + 2 * rng.randrange((len(data) - begin) // 2)
        data[at : at + 64] = b"\xff\x7f" * 32
        name, may_differ = "weights nan", True
    elif kind == 3:
        at = rng.randrange(begin, len(data))
        data[at : at + 2000] = rng.randbytes(len(data[at : at + 2000]))
        name = "weights random"
    else:
        own = [
            place
            for place in places
            if place[0].startswith(("phi3.", "count of", "inner type", "tokenizer.ggml"))
        ]
        # else nearly all would be of the tensors
        what, at, width = rng.choice(own if kind < 6 else places)
        new = rng.choice(
            (
                0,
                1,
                2,
                3,
                2**31 - 1,
                2**32 - 1,
                2**63 - 1,
                2**64 - 1,
                2**40,
                10**6,
                7,
                12,
                64,
                rng.randrange(256),
                99,
            )
        )
        data[at : at + width] = (new % 2 ** (8 * width)).to_bytes(width, "little")
        name = f"{what} = {new}"
    _write(path, bytes(data))
    manifest = rng.choice(("kept", "again", "again", "again"))
    if manifest == "again":
        sign(folder)
    return Case(number, name, manifest, may_differ and manifest != "kept")


def gguf_places(data: bytes) -> tuple[list[tuple[str, int, int]], int]:
    """Every number in the header, with what it is, where, and how many bytes; and where the data
    begins.
    """
    sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
    found = [("version", 4, 4), ("tensors", 8, 8), ("keys", 16, 8)]
    at = 24
    tensors, keys = struct.unpack("<QQ", data[8:24])

    def text(what: str) -> str:
        nonlocal at
        (length,) = struct.unpack("<Q", data[at : at + 8])
        found.append((f"length of {what}", at, 8))
        at += 8 + length
        return data[at - length : at].decode(errors="replace")

    def number(what: str, width: int) -> int:
        nonlocal at
        found.append((what, at, width))
        at += width
        return int.from_bytes(data[at - width : at], "little")

    for _ in range(keys):
        name = text("a key")
        kind = number(f"type of {name}", 4)
        if kind == 8:
            text(name)
        elif kind == 9:
            inner, count = number(f"inner type of {name}", 4), number(f"count of {name}", 8)
            for i in range(count):
                if inner == 8:
                    before = len(found)
                    text(f"{name} {i}")
                    if i > 3:
                        del found[before:]
                elif i > 3:
                    at += sizes[inner]
                else:
                    number(f"{name} {i}", sizes[inner])
        else:
            number(name, sizes[kind])
    for _ in range(tensors):
        name = text("a tensor's name")
        rank = number(f"rank of {name}", 4)
        for i in range(rank):
            number(f"dimension {i} of {name}", 8)
        number(f"type of {name}", 4)
        number(f"offset of {name}", 8)
    return found, at


def readable(name: str) -> str:
    """For a table: printable, and short."""
    return re.sub(r"[^ -~]", "?", name)[:90]
