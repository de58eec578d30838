"""The edge: the only thing that producers and browsers see. Stateless."""
