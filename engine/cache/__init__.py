"""Work of a sampling run that is not done again: plain policy objects, one for each condition of a run."""
