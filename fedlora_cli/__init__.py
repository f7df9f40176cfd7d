"""The `fedlora` command: above both services, imported by neither."""
