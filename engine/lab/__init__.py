"""One setting swept over prompts and seeds: what is tried, what came of it, tables and pictures."""
