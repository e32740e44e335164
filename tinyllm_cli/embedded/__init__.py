"""A small model that answers without a server: weights fetched once, an engine in a helper process."""
