"""`python -m polytask` is `polytask`; `torchrun -m polytask train ...` starts it in several processes."""

from polytask.cli import main

if __name__ == "__main__":
    main()
