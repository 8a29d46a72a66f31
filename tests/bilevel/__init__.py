"""Tests of the learning problem."""
