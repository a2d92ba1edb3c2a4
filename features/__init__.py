"""What training and scoring both compute from events."""
