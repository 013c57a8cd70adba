"""Which patches survive, seen: pictures -> look -> HTML or PNG."""
