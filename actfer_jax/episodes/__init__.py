"""What an episode is on disk and on screen."""
