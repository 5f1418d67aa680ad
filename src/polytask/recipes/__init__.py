"""Strict recipes, the shipped ones, and what runs them."""
