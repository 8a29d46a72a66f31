"""Lightning modules, and what they train with."""
