"""The step as compiled loops, built on the user's own machine."""
