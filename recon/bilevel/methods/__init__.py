"""Upper-level methods: how the parameters descend."""
