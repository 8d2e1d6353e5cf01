"""What a person sees and keeps of a run: progress on the terminal, and lines in a log."""
