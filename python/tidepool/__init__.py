"""Tidepool for Python programs."""
