"""Libraries of pictures: found in folders, embedded once, searched by what they show. No torch.

library = Library.create("photos.library", "runs/demo/model")
library.add("~/Pictures")
for hit in library.search("a dog in the snow", k=10):
    print(hit.score, hit.fit, hit.path)
"""

from cliplet.library.library import Library
from cliplet.library.query import Query, Term
from cliplet.library.records import CaptionHit, Hit, Hits, Picture

__all__ = ["CaptionHit", "Hit", "Hits", "Library", "Picture", "Query", "Term"]
