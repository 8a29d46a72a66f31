"""Tests of the lower level."""
