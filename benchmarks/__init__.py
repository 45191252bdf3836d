"""How fast a sweep trains: sae_lens one by one, side by side, a vmap ensemble, and this engine."""
