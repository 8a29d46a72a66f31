"""The ray transform as an explicit sparse matrix, of which symmetries of the scan leave a part to be stored.

``projector.py`` is the matrix with its transpose, ``folding.py`` finds the symmetries, ``build.py`` has ASTRA make the
entries, ``memory.py`` says what they take, ``sparse.py`` multiplies, by ``sparse.cpp`` where it was compiled, and
``norm.py`` bounds the norm.
"""
