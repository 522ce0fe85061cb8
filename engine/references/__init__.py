"""Reference pictures: their sizes, weights, cost and layout."""
