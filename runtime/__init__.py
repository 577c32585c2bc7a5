"""What runs a model: reads operations, files and text, and never an architecture's name."""
