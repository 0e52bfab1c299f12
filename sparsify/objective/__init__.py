"""What training minimises and what a model is judged by."""
