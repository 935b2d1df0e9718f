"""What networks cost, and what that buys."""
