// For machines with AVX2 and FMA.
#include "headers.hpp"

#ifdef RECON_X86
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define LEVEL 1
namespace recon::avx2 {
#include "vectors.inc"
#include "profiles.inc"
#include "convolutions.inc"
#include "tiles.inc"
#include "units.inc"
#include "groups.inc"
#include "network/leaky.inc"
#include "network/pairs.inc"
#include "network/network.inc"
#include "network/operations.inc"
#include "dispatch.inc"
}  // namespace recon::avx2

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
