"""Total variation without smoothing: the exact minimizer, by a primal-dual method, certified by the gap.

``problem.py`` says what is solved and what is returned, ``solver.py`` how and when it stops, ``certificate.py`` what is
certified; ``iteration.py`` has the steps with torch, and calls those of ``total_variation.cpp`` where it was compiled.
"""
