"""How alike two pictures are, and how good a mask is."""
