"""Making a tokenizer: taken over from a Hugging Face model, or trained on the captions. All end as tokenizer.json."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from cliplet.errors import ModelError
from cliplet.runtime.tokenizer import Tokenizer

SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>"]


def huggingface_tokenizer(place: str, context_length: int) -> Tokenizer:
    """The tokenizer that belongs to a Hugging Face model, by hub name or local folder."""
    file = Path(place) / "tokenizer.json"
    if file.is_file():
        return Tokenizer.from_file(file, context_length)
    from transformers import AutoTokenizer

    try:
        fast = AutoTokenizer.from_pretrained(place, use_fast=True, trust_remote_code=False)
    except Exception as error:  # network, missing files, unknown kind: transformers raises many
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{place}: its tokenizer could not be loaded: {reason}") from None
    backend = getattr(fast, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(f"{place}: its tokenizer has no fast form", "Choose a model with a tokenizer.json.")
    return Tokenizer(backend, context_length)


def train_bpe(captions: Iterable[str], vocab_size: int, context_length: int) -> Tokenizer:
    """A lower-cased byte-level BPE vocabulary learnt from `captions`; a text is <bos> tokens <eos>.

    Byte level, so no text of any script is ever unknown. Deterministic: the same captions give the same file.
    """
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        show_progress=False,
    )
    backend.train_from_iterator(captions, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>",
        special_tokens=[(token, backend.token_to_id(token)) for token in ("<bos>", "<eos>")],
    )
    return Tokenizer(backend, context_length)
