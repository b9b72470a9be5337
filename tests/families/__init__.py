"""Language families."""
