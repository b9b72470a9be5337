"""A GGUF file's tokenizer as llama.cpp reads it, without the weights."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import PartError
from .llama_context import capture_errors


class LlamaVocabulary:
    """llama.cpp's tokenizer of a file that was validated before. A context manager, which frees
    it.
    """

    def __init__(self, path: Path) -> None:
        """Raises PartError, with llama.cpp's message, if it cannot read the vocabulary."""
        import llama_cpp

        self._llama: Any = llama_cpp
        llama_cpp.llama_backend_init()
        how = llama_cpp.llama_model_default_params()
        how.vocab_only = True
        with capture_errors() as heard:
            self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), how)
        if self._model is None:
            raise PartError(
                f"llama.cpp cannot read the tokenizer of {path.name}",
                got=heard.last or "no reason",
            )
        self._vocabulary = llama_cpp.llama_model_get_vocab(self._model)

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """The ids of a text, without those of its beginning and end. `special` reads control
        tokens in it.
        """
        data = text.encode()
        room = len(data) + 16
        while True:
            ids = (self._llama.llama_token * room)()
            count = self._llama.llama_tokenize(
                self._vocabulary, data, len(data), ids, room, False, special
            )
            if count >= 0:
                return list(ids[:count])
            room = -count

    def ends_generation(self, token: int) -> bool:
        """Whether llama.cpp stops at the token."""
        return bool(self._llama.llama_vocab_is_eog(self._vocabulary, token))

    def __enter__(self) -> LlamaVocabulary:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._llama.llama_model_free(self._model)
