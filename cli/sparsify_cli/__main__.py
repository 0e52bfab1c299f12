"""`python -m sparsify_cli`, for launchers such as `torchrun -m sparsify_cli apply ...`."""

from sparsify_cli.app import main

main()
