"""Tests of lucid.training."""
