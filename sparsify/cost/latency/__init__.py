"""Predict the latency of a network of given widths: layers measured one by one, corrected on whole
networks."""
