"""`python -m sparsify_cli`, for `torchrun -m sparsify_cli apply ...` and `accelerate launch -m sparsify_cli apply ...`."""

from sparsify_cli.app import main

main()
