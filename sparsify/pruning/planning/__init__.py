"""Which groups each rule reaches and how many units leave. Imports no torch."""
