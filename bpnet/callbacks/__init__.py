"""What happens between epochs: the history, early stopping, the progress bar, logs, and whatever a user adds."""
