"""What a user gets to see: rows, records and pictures."""
