"""Networks, one per file; flax.linen modules without hidden state."""
