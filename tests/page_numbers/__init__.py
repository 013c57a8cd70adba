"""The numbers of a page by the logs: a file per page."""
