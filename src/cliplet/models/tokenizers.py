"""Making a tokenizer: an existing one of Hugging Face's, or one trained on the captions. All end as tokenizer.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from cliplet.config import TokenizerConfig
from cliplet.errors import ModelError
from cliplet.models.huggingface import reason_of
from cliplet.models.sources import first_that_loads, resolve
from cliplet.runtime.tokenizer import Tokenizer

SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>"]


def make_tokenizer(
    config: TokenizerConfig, captions: Iterable[str], context_length: int, say: Callable[[str], None]
) -> Tokenizer:
    """The tokenizer that `config` names, for a tower without one of its own. Raises ModelError."""
    if config.kind == "huggingface":
        return first_that_loads(
            "tokenizer", config.sources, lambda source: huggingface_tokenizer(source, context_length), say
        )
    if config.kind == "words":
        lowered = normalizers.Lowercase().normalize_str  # the tokenizer's own, which is not Python's in every script
        counts = Counter(word for caption in captions for word in lowered(caption).split())
        often = [word for word, count in counts.most_common() if count >= config.min_count]
        return words_tokenizer(often[: config.vocab_size - len(SPECIAL)], context_length)
    return train_bpe(
        captions, config.vocab_size, context_length, lowercase=config.lowercase, min_count=config.min_count
    )


def huggingface_tokenizer(source: str, context_length: int) -> Tokenizer:
    """An existing tokenizer, by hub name, folder, tokenizer.json file or `pkg:PACKAGE/PATH`. Raises ModelError."""
    place = Path(resolve(source))
    file = place / "tokenizer.json" if place.is_dir() else place
    if file.is_file():
        return Tokenizer.from_file(file, context_length)
    if source.startswith("pkg:") and not place.is_dir():
        raise ModelError(f"{place}: no such file or folder")
    from transformers import AutoTokenizer

    try:
        fast = AutoTokenizer.from_pretrained(str(place), use_fast=True, trust_remote_code=False)
    except Exception as error:  # network, missing files, unknown kind: transformers raises many
        raise ModelError(f"{source}: its tokenizer could not be loaded: {reason_of(error)}") from None
    backend = getattr(fast, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(f"{source}: its tokenizer has no fast form", "Choose a model with a tokenizer.json.")
    if backend.get_vocab_size() <= len(fast.all_special_ids):  # what transformers makes of a folder without a tokenizer
        raise ModelError(f"{source}: holds no tokenizer", "Choose a model with a tokenizer.json.")
    return Tokenizer(backend, context_length)


def train_bpe(
    captions: Iterable[str], vocab_size: int, context_length: int, *, lowercase: bool = True, min_count: int = 2
) -> Tokenizer:
    """A byte-level BPE vocabulary (as GPT-2's) learnt from `captions`; a text is <bos> tokens <eos>.

    Byte level, so no text of any script is ever unknown. Deterministic: the same captions give the same file.
    """
    backend = tokenizers.Tokenizer(models.BPE())
    steps = [normalizers.NFC(), *([normalizers.Lowercase()] if lowercase else [])]
    backend.normalizer = normalizers.Sequence(steps)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=min_count,
        show_progress=False,
    )
    backend.train_from_iterator(captions, trainer)
    return _between_ends(backend, context_length)


def words_tokenizer(words: Iterable[str], context_length: int) -> Tokenizer:
    """Lower-cased words between spaces, looked up whole; a text is <bos> words <eos>, with <unk> for other words.

    Ids follow the alphabet, after the four special ones; so the same set of words always gives the same ids.
    """
    entries = SPECIAL + sorted(set(words) - set(SPECIAL))
    vocabulary = {word: number for number, word in enumerate(entries)}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(SPECIAL)
    return _between_ends(backend, context_length)


def _between_ends(backend: tokenizers.Tokenizer, context_length: int) -> Tokenizer:
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>",
        special_tokens=[(token, backend.token_to_id(token)) for token in ("<bos>", "<eos>")],
    )
    return Tokenizer(backend, context_length)
