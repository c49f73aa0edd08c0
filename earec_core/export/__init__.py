"""What leaves the registry in a form that other tools read."""
