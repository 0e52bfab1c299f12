"""How long a network of given widths takes on a target: measured layer by layer, corrected on whole networks, predicted."""
