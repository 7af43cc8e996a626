"""Networks on whole scans."""
