"""What this machine can do, for `gsio bench`: one module a table, each with its rows and how one of them is measured.

A module has `table(options)`, which returns its `Table`, and `measure(folder, device, *arguments)`, which checks and
times one row in a process of its own and may write into `folder`.
"""
