"""What a model costs: parameters, MACs, activation memory and measured milliseconds."""
