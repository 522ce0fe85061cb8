"""How alike two pictures are."""
