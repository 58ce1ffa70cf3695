"""Protocols of the tables, as YAML."""
