"""Compare pruned embeddings with unpruned ones on a user's pictures: `elip check`."""

from elip_plugin.check.embed import Embedder, read_all
from elip_plugin.check.items import Item, find_items
from elip_plugin.check.neighbors import nearest_in, similarities
from elip_plugin.check.store import Rows, Store
from elip_plugin.check.study import by_the_image

__all__ = [
    "Embedder",
    "Item",
    "Rows",
    "Store",
    "by_the_image",
    "find_items",
    "nearest_in",
    "read_all",
    "similarities",
]
