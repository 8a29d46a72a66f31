// The headers, before instructions are chosen: what is in them is compiled for every machine, and shared.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <limits>
#include <type_traits>
#include <utility>

#include "filter_bank.hpp"

#if defined(__x86_64__) && defined(__GNUC__)
#define RECON_X86
#include <immintrin.h>
#endif
