"""Mutations of the compiled kernels, which are compiled again, see :mod:`benchmarks.mutations`."""

from __future__ import annotations

from benchmarks.mutations.mutation import Mutation, mutations_of

KERNELS = "tests/models/regularizers/kernels"
BANK = f"{KERNELS}/test_agreement.py"
FUNCTIONS = f"{KERNELS}/test_functions.py"
HOSTILE = f"{KERNELS}/test_hostile.py"
NETWORK = f"{KERNELS}/test_network.py"
SUMS = f"{KERNELS}/test_sums.py"
NATIVE = "models/regularizers/kernels/native"
TV = "recon/lower_level/solvers/total_variation/total_variation.cpp"
SOLVES, CERTIFICATES = (f"tests/lower_level/solvers/test_total_variation{part}.py" for part in ("", "_certificates"))

COMPILED: list[Mutation] = [
    *mutations_of(
        TV,
        (SOLVES, CERTIFICATES),
        ("p0[j] = a * scale;\n            p1[j] = b * scale;", "p0[j] = a;\n            p1[j] = b;"),
        (
            "clip(p0[width - 1] + step * (below[width - 1] - here[width - 1]), T(-1), T(1))",
            "p0[width - 1] + step * (below[width - 1] - here[width - 1])",
        ),
        ("T *below = bar + at + (r + 1 < height ? width : 0);", "T *below = bar + at + (r + 2 < height ? width : 0);"),
        ("const T left = j > 0 ? p1[j - 1] : T(0);", "const T left = j > 1 ? p1[j - 1] : T(0);"),
        (" + UNIT * std::fabs(middle)", ""),
        ("std::fabs(double(rounded) - middle) + ", ""),
        (
            "(best <= low) | (best >= high) | (w <= 0)",
            "(best <= low) | (best >= high)",
            "pixels without weight are at an end, where they are held, or feel no force, which is the product then",
        ),
        ("held ? product : 0.0", "0.0"),
        ("length >= snap ? length", "length > 1.0 ? length"),
        ("a >= snap ? 1.0", "a >= 1.0 ? 1.0"),
        ("pull == 0 ? v : end", "end"),
        ("for (int64_t l = 0; j < count; ++j, ++l) lanes[l] += terms[j];", ""),
        ("slack[width - 1] = std::fabs(last) - last * q0[width - 1];", "slack[width - 1] = 0;"),
        (
            "const T next = clip(x[j] + step * (misfit - alpha * transpose), low, high);",
            "const T next = x[j] + step * (misfit - alpha * transpose);",
        ),
    ),
    *mutations_of(
        f"{NATIVE}/filter_bank.cpp",
        (BANK, NETWORK),
        ("const int64_t rows = cut.reach - 1;", "const int64_t rows = task.size - 1;"),
        ("unit % cut.blocks ? to + part : part", "part"),
    ),
    *mutations_of(
        f"{NATIVE}/tiles.inc",
        (BANK, SUMS),
        ("sum.add(within<T>(value, t.count - i));", "sum.add(value);"),
        ("t.results[0] += total;", "t.results[0] = T(t.results[0] + total);"),
    ),
    *mutations_of(f"{NATIVE}/tiles.inc", HOSTILE, ("(size > top) | (size != size)", "(size > top)")),
    *mutations_of(
        f"{NATIVE}/units.inc",
        (BANK, HOSTILE),
        ("            std::fill_n(to + count, pitch - count, T(0));", ""),
        ("task.order ? task.order[image] : image", "image"),
    ),
    *mutations_of(
        f"{NATIVE}/profiles.inc",
        FUNCTIONS,
        ("        below = below > inside ? below - T(1) : below;\n", ""),
    ),
    *mutations_of(
        f"{NATIVE}/vectors.inc",
        FUNCTIONS,
        ("    x = x < T(-80) ? all<T>(-80) : x;\n", ""),
        ("f = (m - T(1)) + lost * down", "f = (m - T(1))"),
        ("step < sizeof(T) / 4; ++step) y += T(0.5)", "step < 1; ++step) y += T(0.5)"),
    ),
    *mutations_of(
        f"{NATIVE}/network/pairs.inc",
        NETWORK,
        ("{3, 1, -1, 2, 1, {1}}", "{3, 1, -1, 1, 1, {1}}"),
    ),
    *mutations_of(
        f"{NATIVE}/network/leaky.inc",
        NETWORK,
        ("power == std::numeric_limits<T>::infinity() ? Real<T>{} : inverse_root<T>(power)", "inverse_root<T>(power)"),
        ("(t > T(0)) & (t < width)", "(t > T(0))"),
    ),
    *mutations_of(
        f"{NATIVE}/network/network.inc",
        NETWORK,
        ("strange += !(std::abs(from[i]) <= T(1e9)), ", ""),
        ("T *>(task.x), image, x_rows) && task.inner", "T *>(task.x), image, x_rows) | task.inner"),
        ("step.paired ? std::min<int64_t>(2, rows - row)", "step.paired ? 2"),
        ("vectors + up_vectors(step.side - 1), apart", "vectors, apart"),
        (
            "void clear(int64_t l) const { std::fill_n(slope_of(l), (differentiates ? 2 : 1) * size_of_plane, T(0)); }",
            "void clear(int64_t) const {}",
        ),
        ("(row < end - begin ? inner : past)", "inner"),
        ("task.order ? task.order[image] * cut.blocks + block : unit", "task.order ? unit : unit"),
        ("            std::fill_n(to + margin + count, pitch - margin - count, T(0));", ""),
    ),
    *mutations_of(
        f"{NATIVE}/network/operations.inc",
        (NETWORK, SUMS),
        ("sum.add(within<T>(value_of_u * a, count - i));", "sum.add(value_of_u * a);"),
        (
            "        value = sum;\n",
            "        value = Sum<T>();\n        value.parts[0][0] = T(sum.total());\n",
        ),
        ("        std::fill_n(plane(l, 0), 2 * size_of_plane, T(0));\n", ""),
    ),
]
