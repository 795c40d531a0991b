"""DNS providers, one module each: plugins like anybody's, found by their entry points only."""
