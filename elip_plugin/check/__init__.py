"""Compare pruned embeddings with unpruned ones on a user's pictures: `elip check`."""

from elip_plugin.check.embed import Embedder, fill, read_ahead
from elip_plugin.check.neighbors import nearest_in, similarities
from elip_plugin.check.store import Rows, Store
from elip_plugin.measure.preview import image_only
from elip_plugin.pictures import Item, find_items

__all__ = [
    "Embedder",
    "Item",
    "Rows",
    "Store",
    "fill",
    "find_items",
    "image_only",
    "nearest_in",
    "read_ahead",
    "similarities",
]
