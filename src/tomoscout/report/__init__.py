"""What was learnt, found and scored, for people to look at: pictures, plots and one self-contained page."""
