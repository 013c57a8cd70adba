"""One folder per host library, imported only when the host is."""
