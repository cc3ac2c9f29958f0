"""Tables as people have them: what their columns are, how these become numbers, and models that take the table itself.

`frames` is one view on every kind of table, `schema` turns columns into numbers and codes, `target` labels and
quantities into what a loss takes and back, and `model` puts them around a trainer.
"""
