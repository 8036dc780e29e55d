"""Pictures and sentences to files of vectors, any number of them, by a command that may be killed. No torch."""

from cliplet.embedding.inputs import Pictures, Sentences, find_pictures, read_list, read_sentences
from cliplet.embedding.run import embed

__all__ = ["Pictures", "Sentences", "embed", "find_pictures", "read_list", "read_sentences"]
