"""Ways to attend, and which is fastest on a card."""
