"""Steps of solvers and their stopping tests as passes over images, compiled; where not, torch does the same."""
