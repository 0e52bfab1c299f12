"""What a network costs: multiply-accumulates, parameters, bytes, milliseconds; predicted and measured."""
