"""How fast, how hot, how equal: what `flatlm bench` and `flatlm parity` measure."""
