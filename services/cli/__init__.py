"""The `cdrs` command."""
