"""How answers are written: sampling, sequences, many at once."""
