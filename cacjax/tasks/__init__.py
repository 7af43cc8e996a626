"""Systems, one per file; each has `make(config) -> Task`."""
