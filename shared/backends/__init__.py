"""Adapters behind the ports, one folder for each engine."""
