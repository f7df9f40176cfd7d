"""Generated from `proto/fedlora/proto/v1/*.proto` by `make proto`; never edited by hand."""
