"""llama.cpp splits texts as the tokenizer does: its name for how follows from tokenizer.json, and
some hundreds of texts show whether it is right.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, trainers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from phisense.chat.tokenizer_probes import TokenizerDifference, find_differences, probe_texts
from phisense.errors import PartError
from phisense.families import FAMILIES
from phisense.families.pre_tokenizers import (
    ALIASES,
    APPROXIMATED,
    PRE_TOKENIZERS,
    PreTokenizer,
    name_of,
    read_pre_tokenizer,
)
from phisense.publish.vocabulary import GGUFVocabulary, read_vocabulary

TAGS = FAMILIES["phi3"].chat.special_tokens
END_OF_TEXT = FAMILIES["phi3"].chat.end_of_text


def make_tokenizer(splitting: PreTokenizer) -> PreTrainedTokenizerFast:
    """Byte-level BPE that splits so, and whose merges were trained on the probe texts without any
    splitting: wherever a text is cut or not makes other tokens.
    """
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=1500, initial_alphabet=ByteLevel.alphabet(), show_progress=False
    )
    often = ["1984", "I's you're They'll"] * 20
    inner.train_from_iterator([*probe_texts(), *often], trainer)
    told = json.loads(inner.to_str())["model"]
    whole = Tokenizer(
        models.BPE(
            vocab=told["vocab"],
            merges=[tuple(m) for m in told["merges"]],
            ignore_merges=splitting.ignore_merges,
        )
    )
    bare = {"version": "1.0", "added_tokens": [], "pre_tokenizer": splitting.document()}
    model = {"type": "BPE", "vocab": {}, "merges": []}
    whole.pre_tokenizer = Tokenizer.from_str(json.dumps({**bare, "model": model})).pre_tokenizer
    whole.decoder = decoders.ByteLevel()
    whole.add_special_tokens(
        [AddedToken(tag, special=True, normalized=False) for tag in (*TAGS, "<image>")]
    )
    return PreTrainedTokenizerFast(tokenizer_object=whole)


def differences(
    vocabulary: GGUFVocabulary, tokenizer: Any, folder: Path
) -> list[TokenizerDifference]:
    """The texts that llama.cpp reads otherwise from a file with this vocabulary."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    from phisense.chat.llama_vocabulary import LlamaVocabulary

    path = folder / "vocabulary.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_block_count(1)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    vocabulary.write(writer, tokenizer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with LlamaVocabulary(path) as opened:
        lead = bool(vocabulary.lead)
        return find_differences(opened, tokenizer, behind=END_OF_TEXT, prefix_space=lead)


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_each_way_of_splitting_is_llama_cpps(name: str, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(PRE_TOKENIZERS[name])
    vocabulary = read_vocabulary(tokenizer, 2000)
    assert vocabulary.pre_tokenizer == name
    found = differences(vocabulary, tokenizer, tmp_path)
    assert not [str(one) for one in found if not one.is_known(name)]
    assert bool(found) == (name in APPROXIMATED), "mended in llama.cpp: take it off the list"


def test_a_space_before_every_text_is_written_for_llama_cpp(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(PreTokenizer(prefix_space=True))
    vocabulary = read_vocabulary(tokenizer, 2000)
    assert (vocabulary.pre_tokenizer, vocabulary.lead) == ("gpt-2", " ")
    assert not differences(vocabulary, tokenizer, tmp_path)


@pytest.mark.parametrize(
    ("right", "wrong", "text"),
    [("smollm", "gpt-2", "1984"), ("qwen2", "llama-bpe", "1984"), ("smaug-bpe", "gpt-4o", "I's")],
)
def test_another_name_gives_other_tokens(right: str, wrong: str, text: str, tmp_path: Path) -> None:
    """The control: what would be written if the name did not follow from the tokenizer."""
    from dataclasses import replace

    tokenizer = make_tokenizer(PRE_TOKENIZERS[right])
    vocabulary = replace(read_vocabulary(tokenizer, 2000), pre_tokenizer=wrong)
    found = differences(vocabulary, tokenizer, tmp_path)
    assert any(text in one.text for one in found)


def test_an_unknown_way_is_refused_with_those_that_are_known() -> None:
    tokenizer = make_tokenizer(PreTokenizer(pattern=r"\p{L}+|\s+|[^\p{L}\s]+"))
    with pytest.raises(PartError, match=r"got the pre_tokenizer .*Split.*wanted that of gpt-2, sm"):
        read_vocabulary(tokenizer, 2000)


def test_reading_is_the_reverse_of_writing() -> None:
    for name, one in PRE_TOKENIZERS.items():
        model = {"ignore_merges": one.ignore_merges}
        assert read_pre_tokenizer({"pre_tokenizer": one.document(), "model": model}) == one
        assert name_of(one) == name
    assert set(ALIASES.values()) <= set(PRE_TOKENIZERS)
    assert name_of(PreTokenizer(prefix_space=True)) == "gpt-2"
    for steps in (
        None,
        {"type": "Whitespace"},
        {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}]},
        {"type": "ByteLevel", "use_regex": False},
    ):
        assert read_pre_tokenizer({"pre_tokenizer": steps}) is None


def test_the_texts_are_many_and_different() -> None:
    texts = list(probe_texts())
    assert len(set(texts)) == len(texts) > 600
    joined = "".join(texts)
    for one in ("1984", "n't", "'LL", "\r\n", "\t\t", " " * 33, "def f(", "数", "\u200d", "٣"):
        assert one in joined
