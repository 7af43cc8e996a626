"""What a run keeps on disk, and what it shows while it trains."""
