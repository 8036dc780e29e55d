"""OpenCLIP's tokenizers as a tokenizer.json. open_clip_torch is needed to make one, not to use it.

Shapes: N texts, L tokens.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors
from torch.nn import functional as F

from cliplet.errors import ModelError
from cliplet.runtime.tokenizer import Tokenizer

# What sets tokenizers apart: capitals, quotes, punctuation, white space, accents, nothing, and more than there is room.
SAMPLES = [
    "",
    "a dog",
    "A Dog\u2019s \u201cred\u201d ball, on_the   grass;\n\n2 of 10 (café) & <b>more</b>!",
    " many  words" * 200,
]


class Inexpressible(ModelError):
    """A model that OpenCLIP itself can run, but that can be no DualEncoder and no model folder."""


def library(what: str) -> Any:
    """The module open_clip, an optional dependency. Raises ModelError saying that `what` needs it."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    try:
        import open_clip
    except ImportError:
        raise ModelError(f"{what} needs the package open_clip_torch", "pip install open_clip_torch") from None
    finally:  # its import makes every tokenizer of the process use one core
        if before is None:
            os.environ.pop("TOKENIZERS_PARALLELISM", None)
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before
    return open_clip


def clip_tokenizer(context_length: int) -> Tokenizer:
    """The tokenizer of CLIP and most OpenCLIP models, made of the merges inside open_clip_torch.

    A text is <start_of_text> tokens <end_of_text>, in lower case, split into letters, single digits and the rest, then
    byte-level BPE; a cut text keeps its <end_of_text>. Ids are those of OpenCLIP's SimpleTokenizer, but for texts that
    its cleaning changes in ways which a tokenizer.json cannot express: HTML entities stay as they are, of what ftfy
    does only quotes, control characters and composed accents are done (no mojibake, ligatures, full-width letters), and
    a Greek capital sigma that ends a word becomes the other small one.
    """
    theirs = library("CLIP's tokenizer").tokenizer.SimpleTokenizer()
    ends = theirs.sot_token_id, theirs.eot_token_id
    start, end = (theirs.decoder[id_] for id_ in ends)
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=theirs.encoder, merges=list(theirs.bpe_ranks), end_of_word_suffix="</w>")
    )
    backend.normalizer = normalizers.Sequence(_cleaning("lower"))
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="removed", invert=True),  # what lies between words is white space
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    # OpenCLIP finds these names in a caption after it was put into lower case, hence normalized.
    backend.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=True) for token in (start, end)])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=list(zip((start, end), ends, strict=True))
    )
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("</w>", " ")])
    return Tokenizer(backend, context_length)


def tokenizer_of(
    name: str, text: Mapping[str, Any], folder: Path | None = None
) -> tuple[Tokenizer, dict[str, int | None]]:
    """The tokenizer of architecture `name`, and by what ids its models know padding: arguments of `refilled`.

    `text`: the architecture's text_cfg. `folder`: where a tokenizer.json of the weights may lie, which is taken before
    the hub's. Raises ModelError where it cannot be had, Inexpressible where a tokenizer.json cannot
    express it.
    """
    context_length, options = text.get("context_length", 77), dict(text.get("tokenizer_kwargs") or {})
    source = text.get("hf_tokenizer_name")
    if text.get("tokenizer_mode"):
        raise Inexpressible(f"OpenCLIP's {name}: its tokenizer mode {text['tokenizer_mode']!r} is not supported")
    if source:
        if folder is not None and (folder / "tokenizer.json").is_file():
            source = str(folder)
        return _huggingface_tokenizer(name, source, context_length, options)
    if not _is_simple(name):
        raise Inexpressible(
            f"OpenCLIP's {name}: its tokenizer is a sentencepiece file (SigLipTokenizer), which is not supported"
        )
    if options:
        raise Inexpressible(f"OpenCLIP's {name}: options of its tokenizer are not supported: {', '.join(options)}")
    return clip_tokenizer(context_length), {"pad_id": 0, "stripped_id": None}


def _is_simple(name: str) -> bool:
    """Whether OpenCLIP itself, asked for the tokenizer of an architecture that names none, makes CLIP's own."""
    open_clip = library(f"OpenCLIP's {name}")
    try:
        return isinstance(open_clip.get_tokenizer(name), open_clip.tokenizer.SimpleTokenizer)
    except Exception:  # what needs a file from the network, or sentencepiece, is not CLIP's own
        return False


def refilled(
    ids_NL: torch.Tensor, mask_NL: torch.Tensor, length: int, *, pad_id: int, stripped_id: int | None
) -> torch.Tensor:
    """Ids as OpenCLIP's own tokenizer gives them: padded to `length` (0: as they are) with `pad_id`, and `stripped_id`
    replaced by 0."""
    ids_NL = ids_NL.masked_fill(mask_NL == 0, pad_id)
    if length:  # at least theirs, or the model could not read them
        ids_NL = F.pad(ids_NL, (0, length - ids_NL.shape[1]), value=pad_id)
    return ids_NL if stripped_id is None else ids_NL.masked_fill(ids_NL == stripped_id, 0)


def _huggingface_tokenizer(
    name: str, source: str, context_length: int, options: dict[str, Any]
) -> tuple[Tokenizer, dict[str, int | None]]:
    make = library(f"OpenCLIP's {name}").tokenizer.HFTokenizer
    try:
        theirs = make(source, context_length=context_length, trust_remote_code=False, **options)
        expected = theirs(SAMPLES)
    except Exception as error:  # network, missing files, options that it does not know
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"OpenCLIP's {name}: its tokenizer {source} could not be loaded: {reason}",
            "Without a network, name a local weights file, with its tokenizer.json in the same folder.",
        ) from None
    backend = getattr(theirs.tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise Inexpressible(f"OpenCLIP's {name}: its tokenizer {source} has no fast form and is not supported")
    parts = json.loads(backend.to_str())
    # OpenCLIP cleans a text before it looks for added tokens, a tokenizer.json after: those that cleaning changes can
    # never be found there and must not be here. (Beside those that it leaves, white space may count otherwise.)
    parts["added_tokens"] = [t for t in parts["added_tokens"] if theirs.clean_fn(t["content"]) == t["content"]]
    ours = tokenizers.Tokenizer.from_str(json.dumps(parts))
    own = [ours.normalizer] if ours.normalizer else []
    ours.normalizer = normalizers.Sequence([*_cleaning(options.get("clean", "whitespace")), *own])
    tokenizer = Tokenizer(ours, context_length)
    padding = {
        "pad_id": theirs.tokenizer.pad_token_id,
        "stripped_id": theirs.tokenizer.sep_token_id if theirs.strip_sep_token else None,
    }
    ids_NL, mask_NL = (torch.from_numpy(array) for array in tokenizer(SAMPLES))
    if not torch.equal(refilled(ids_NL, mask_NL, context_length, **padding), expected):
        raise Inexpressible(
            f"OpenCLIP's {name}: its tokenizer {source} does what a tokenizer.json cannot express and is not supported"
        )
    return tokenizer, padding


def _cleaning(kind: str) -> list[normalizers.Normalizer]:
    """OpenCLIP's cleaning of texts, `lower`, `whitespace` or `canonicalize`, as far as it can be expressed."""
    steps: list[normalizers.Normalizer] = [
        normalizers.Replace(Regex("[\u02bc\u2018-\u201b]"), "'"),
        normalizers.Replace(Regex("[\u201c-\u201f]"), '"'),
        normalizers.Replace(
            Regex(r"[\x00-\x08\x0b\x0e-\x1f\x7f\x{206a}-\x{206f}\x{feff}\x{fff9}-\x{fffc}]"), ""
        ),  # ftfy's list
        normalizers.NFC(),
    ]
    if kind == "canonicalize":
        steps += [normalizers.Replace("_", " "), normalizers.Replace(Regex(r"[!-/:-@\[-`{-~]"), "")]
    if kind != "whitespace":
        steps.append(normalizers.Lowercase())
    return [*steps, normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
