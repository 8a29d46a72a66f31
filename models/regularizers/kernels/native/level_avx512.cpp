// For machines with AVX-512 (F, DQ, BW, VL).
#include "headers.hpp"

#ifdef RECON_X86
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,fma")
#endif

#define LEVEL 2
namespace recon::avx512 {
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
}  // namespace recon::avx512

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
