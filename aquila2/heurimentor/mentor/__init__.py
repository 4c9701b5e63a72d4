"""Decisions about a run while it goes on: what people and policies may ask for."""
