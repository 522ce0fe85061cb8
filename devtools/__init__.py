"""What developing the pack needs and a user of it does not: environment, server, demo."""
