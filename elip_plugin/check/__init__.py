"""Compare pruned embeddings with unpruned ones on a user's pictures: `elip check`."""
