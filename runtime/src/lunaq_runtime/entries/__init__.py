"""The entries document: the one configuration format between operator, runtime and laptop.

`model` is its meaning as plain data, `parse` reads and validates a document into it.
"""
