"""Folders of results: locks, tables, runs, one result after another."""
