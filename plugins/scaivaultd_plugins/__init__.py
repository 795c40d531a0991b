"""The built-in challenge solvers: plugins like anybody's, found by their entry points only."""
