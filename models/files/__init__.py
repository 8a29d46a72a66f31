"""Files of models: what they hold, which classes they may name, the ones that ship."""
