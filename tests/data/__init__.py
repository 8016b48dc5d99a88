"""Tests of lucid.data."""
