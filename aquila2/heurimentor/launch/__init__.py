"""`aquila2 launch`: an experiment and its hosts as the commands that start the ranks of a run."""
