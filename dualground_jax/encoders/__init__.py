"""From video and sentences to features."""
