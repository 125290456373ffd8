"""What the `headrace` command does: one file per command, `cli` names them."""
