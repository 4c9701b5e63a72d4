"""The documents, and what makes their generated blocks."""
