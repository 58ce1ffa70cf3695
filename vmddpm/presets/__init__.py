"""Configurations by name: `vmddpm train --config NAME`."""
