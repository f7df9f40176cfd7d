"""`python -m fedlora_cli`, the same as `fedlora`."""

from fedlora_cli.app import main

if __name__ == "__main__":
    main()
