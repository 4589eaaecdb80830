"""What is drawn and said of the techniques' true state."""
