"""One scan from files to scores."""
