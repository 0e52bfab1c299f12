"""A plan's penalties in other people's trainers. Accelerate needs no adapter: `attach` takes its optimizer."""
