"""Benchmarks of this machine for `gsio bench`, with one module for each table.

Such a module has `table(options)`, which returns its `Table`, and `measure(folder, device, *arguments)`, which checks
and measures one row in a process of its own and may write into `folder`.
"""
