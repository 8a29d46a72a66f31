// For every machine.
#include "headers.hpp"

#define LEVEL 0
namespace recon::baseline {
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
}  // namespace recon::baseline
